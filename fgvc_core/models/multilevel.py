"""One head for all levels of a taxonomy, consistent by construction.

A class's score is its own and its family's and its order's added up, each from weights of
its own (Salakhutdinov, Torralba, Tenenbaum 2011, "Learning to Share Visual Appearance for
Multiclass Object Detection", CVPR, section 2). A family's probability is the sum of its species',
so that no answer can name a species of another family than the family it names; with
``loss.hierarchy`` every level is trained (as the levels of Chang et al. 2021, "Your Flamingo is My
Bird", https://arxiv.org/abs/2011.09040, each with a head of its own). Cost: one row of weights more
a family. A warning: it can say nothing that a linear head cannot; what is learnt of a family
reaches its rare species sooner, which matters with few pictures and hardly otherwise.
"""

from collections.abc import Sequence

import torch
from torch import nn

from fgvc_core.errors import ConfigurationError


class MultiLevelHead(nn.Module):
    """Linear scores of classes and of the groups above them; starts at zero.

    Args:
        features: D.
        groups: For each level above the class, from coarse to fine, each class's group:
            0 to one less than the level's number of groups, none empty.
    """

    group_LK: torch.Tensor

    def __init__(self, features: int, groups: Sequence[Sequence[int]]) -> None:
        super().__init__()
        rows, start = [], 0
        for level in groups:
            rows.append(torch.tensor(level) + start)
            start += max(level) + 1
        self.register_buffer("group_LK", torch.stack(rows), persistent=False)
        self.classes = nn.Linear(features, len(groups[0]))
        self.groups = nn.Linear(features, start)
        for layer in (self.classes, self.groups):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def weight(self) -> torch.Tensor:
        """(K, D): what a linear head with the same answers has as weights."""
        return self.classes.weight + self.groups.weight[self.group_LK].sum(dim=0)

    def forward(self, features_ND: torch.Tensor) -> torch.Tensor:
        """(N, D) to (N, K); N may be 0."""
        above_NLK = self.groups(features_ND)[:, self.group_LK]
        return self.classes(features_ND) + above_NLK.sum(dim=1)


def check_groups(groups: Sequence[Sequence[int]], classes: int) -> None:
    """Refuse groups that are no taxonomy of so many classes.

    Raises:
        ConfigurationError: saying which level is wrong.
    """
    if not groups:
        raise ConfigurationError(
            "model.head = 'multilevel' needs the taxonomy, and model.class_groups is empty.",
            why="Each class's score has a part of each group above it.",
            remedy="Take a data set with a taxonomy (fieldmarks, cars, aircraft): a simulation "
            "fills model.class_groups in; for a federation copy it from a simulated run's "
            "recipe.toml.",
        )
    for number, level in enumerate(groups):
        if len(level) != classes or set(level) != set(range(max(level, default=-1) + 1)):
            raise ConfigurationError(
                f"model.class_groups, level {number}: it must name a group for each of the "
                f"{classes} classes, numbered from 0 without a gap.",
                remedy="Leave model.class_groups out, to have it filled in from the data set.",
            )
