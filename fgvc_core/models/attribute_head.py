"""A head that reads attributes off a picture and names the class that has them.

A linear map takes the vector into the space of the classes' public attributes; a class's score
is the cosine between what was read and what it has (Frome et al. 2013, "DeViSE", section 3.2,
https://papers.nips.cc/paper/5204-devise-a-deep-visual-semantic-embedding-model; Akata et al.
2016, "Label-Embedding for Image Classification", section 3, https://arxiv.org/abs/1503.08677). A
class that no site has a picture of is scored like any other; in training it stands among the
wrong answers, but nothing is pushed away from it. Cost: A (attributes) rows in place of K
(classes), which is also what travels. Attributes must be public: computed from private pictures
they would be a release. A warning: scores of unseen classes come out low beside seen ones
(see ``zero_shot.harmonic``), and classes of equal attributes cannot be told apart.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from fgvc_core.errors import ConfigurationError
from fgvc_core.models.heads import unit_vectors


class AttributeHead(nn.Module):
    """``scale`` times the cosine between read and published attributes.

    Args:
        features: D.
        attributes: K rows of A values in 0 to 1.
        scale: Inverse temperature of the softmax.
        unseen: Classes without a training picture anywhere.
    """

    directions_KA: torch.Tensor
    unseen_K: torch.Tensor

    def __init__(
        self,
        features: int,
        attributes: Sequence[Sequence[float]],
        scale: float,
        unseen: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.scale = scale
        values_KA = torch.tensor(attributes, dtype=torch.float64)
        # What all classes share tells none apart.
        directions_KA = F.normalize(values_KA - values_KA.mean(dim=0), dim=1).float()
        unseen_K = torch.zeros(len(directions_KA), dtype=torch.bool)
        unseen_K[list(unseen)] = True
        self.register_buffer("directions_KA", directions_KA, persistent=False)
        self.register_buffer("unseen_K", unseen_K, persistent=False)
        self.read = nn.Linear(features, directions_KA.shape[1])

    @property
    def weight(self) -> torch.Tensor:
        """(K, D): the direction of the vector that speaks for each class."""
        return self.directions_KA @ self.read.weight

    def forward(self, features_ND: torch.Tensor) -> torch.Tensor:
        """(N, D) to (N, K), each within plus and minus ``scale``; N may be 0."""
        logits_NK = self.scale * F.linear(unit_vectors(self.read(features_ND)), self.directions_KA)
        if self.training:
            return torch.where(self.unseen_K, logits_NK.detach(), logits_NK)
        return logits_NK


def check_attributes(
    attributes: Sequence[Sequence[float]], unseen: Sequence[int], classes: int
) -> None:
    """Refuse attributes that are not those of so many classes.

    Raises:
        ConfigurationError: saying what is wrong.
    """
    if not attributes:
        raise ConfigurationError(
            "model.head = 'semantic' needs class attributes, and model.class_attributes is empty.",
            why="Classes are named by them.",
            remedy="Take a data set with attributes (fieldmarks, cub): a simulation fills "
            "model.class_attributes in; for a federation copy it from a simulated run's "
            "recipe.toml.",
        )
    if len(attributes) != classes or len({len(row) for row in attributes}) != 1:
        raise ConfigurationError(
            f"model.class_attributes must have {classes} rows, one a class, of equal length.",
            remedy="Leave it out, to have it filled in from the data set.",
        )
    if any(not 0 <= number < classes for number in unseen) or len(set(unseen)) >= classes:
        raise ConfigurationError(
            f"model.unseen_classes = {list(unseen)} must be numbers of classes, 0 to "
            f"{classes - 1}, and leave one to learn from.",
            remedy="Leave it out: partition.unseen fills it in.",
        )
