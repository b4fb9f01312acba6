"""Heads from a feature vector to logits: linear, cosine, subspace, multilevel and semantic.

Multilevel: a class's score is the sum of separate scores for its class, family and order
(Salakhutdinov, Torralba, Tenenbaum 2011, "Learning to Share Visual Appearance for Multiclass
Object Detection", CVPR, section 2). A family's probability is the sum over its species, so that
predictions are consistent across levels; with ``loss.hierarchy`` every level is trained (like the
levels of Chang et al. 2021, "Your Flamingo is My Bird", https://arxiv.org/abs/2011.09040, which
have separate heads). Cost: one row of weights per family. It has no more capacity than a linear
head; sharing within a family helps rare species when pictures are few, and hardly otherwise.

Semantic: a linear map takes the vector to the space of public class attributes; a class's score
is the cosine between predicted and published attributes (Frome et al. 2013, "DeViSE", section 3.2,
https://papers.nips.cc/paper/5204-devise-a-deep-visual-semantic-embedding-model; Akata et al.
2016, "Label-Embedding for Image Classification", section 3, https://arxiv.org/abs/1503.08677). A
class without pictures at any site is scored like any other; training counts it among the wrong
answers, but pushes nothing away from it. Cost: A (attributes) rows instead of K (classes), which
is also what travels. Attributes must be public: computed from private pictures they would be a
release. Limits: unseen classes score lower than seen ones (see ``zero_shot.harmonic``), and
classes with equal attributes cannot be told apart.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from fgvc_core.components import HEADS
from fgvc_core.errors import ConfigurationError
from fgvc_core.models.settings import ModelSettings

_SHORTEST = 1e-12
"""Vectors of at most this length count as zero."""


class LinearHead(nn.Linear):
    """Linear head that starts at zero, so that all classes are equally likely.

    Args:
        features: D.
        classes: K.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class CosineHead(nn.Module):
    """``scale`` times the cosine between the vector and each class's direction.

    After Wang et al. 2017, "NormFace", section 3, https://arxiv.org/abs/1704.06369.
    Unit length makes the vector independent of the contrast of a site's camera.

    Args:
        features: D.
        classes: K.
        scale: Inverse temperature of the softmax.
    """

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(classes, features) * features**-0.5)

    def forward(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Map (N, D) to (N, K), each within ``scale`` of 0.

        A zero vector gives 0 and no gradient, because its direction's gradient is unbounded.
        """
        directions_KD = F.normalize(self.weight, dim=1)
        return self.scale * F.linear(unit_vectors(features_ND), directions_KD)


class SubspaceHead(nn.Module):
    """A linear classifier on unit vectors in a public subspace, relative to a center.

    Under differential privacy the noise grows with the number of dimensions, so a few
    directions, chosen without a private picture, matter most for accuracy.

    Args:
        directions_PD: Orthonormal rows.
        classes: K.
    """

    directions_PD: torch.Tensor

    def __init__(self, directions_PD: torch.Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("directions_PD", directions_PD, persistent=False)
        self.centre = nn.Parameter(torch.zeros(len(directions_PD)))
        self.weight = nn.Parameter(torch.zeros(classes, len(directions_PD)))
        self.bias = nn.Parameter(torch.zeros(classes))

    def project(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Map (N, D) to unit vectors (N, P), before centering."""
        return unit_vectors(F.linear(unit_vectors(features_ND), self.directions_PD))

    def centred(self, vectors_NP: torch.Tensor) -> torch.Tensor:
        """Map projected vectors to unit vectors around the center."""
        return unit_vectors(vectors_NP - self.centre)

    def forward(self, features_ND: torch.Tensor) -> torch.Tensor:
        return F.linear(self.centred(self.project(features_ND)), self.weight, self.bias)


class WhitenedHead(SubspaceHead):
    """A subspace head whose centered vectors are whitened before they are scaled to length 1.

    Args:
        directions_PD: Orthonormal rows.
        classes: K.
    """

    def __init__(self, directions_PD: torch.Tensor, classes: int) -> None:
        super().__init__(directions_PD, classes)
        self.whitening = nn.Parameter(torch.eye(len(directions_PD)))

    def centred(self, vectors_NP: torch.Tensor) -> torch.Tensor:
        """Map projected vectors to whitened unit vectors around the center."""
        return unit_vectors(F.linear(vectors_NP - self.centre, self.whitening))


def unit_vectors(vectors_NP: torch.Tensor) -> torch.Tensor:
    """Normalize rows (N, P) to length 1; a zero row stays zero, without a gradient."""
    length_N1 = vectors_NP.norm(dim=1, keepdim=True)
    return torch.where(length_N1 > _SHORTEST, vectors_NP / length_N1.clamp_min(_SHORTEST), 0.0)


class MultiLevelHead(nn.Module):
    """Linear scores of classes and of the groups above them; starts at zero.

    Args:
        features: D.
        groups: For each level above the class, from coarse to fine, each class's group:
            0 to number of groups - 1, none empty.
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
        """(K, D), weights of the equivalent linear head."""
        return self.classes.weight + self.groups.weight[self.group_LK].sum(dim=0)

    def forward(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Map (N, D) to (N, K); N may be 0."""
        above_NLK = self.groups(features_ND)[:, self.group_LK]
        return self.classes(features_ND) + above_NLK.sum(dim=1)


def check_groups(groups: Sequence[Sequence[int]], classes: int) -> None:
    """Refuse groups that are not a taxonomy of ``classes`` classes.

    Raises:
        ConfigurationError: naming the wrong level.
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


class AttributeHead(nn.Module):
    """``scale`` times the cosine between predicted and published attributes.

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
        # The part common to all classes does not help to distinguish them.
        directions_KA = F.normalize(values_KA - values_KA.mean(dim=0), dim=1).float()
        unseen_K = torch.zeros(len(directions_KA), dtype=torch.bool)
        unseen_K[list(unseen)] = True
        self.register_buffer("directions_KA", directions_KA, persistent=False)
        self.register_buffer("unseen_K", unseen_K, persistent=False)
        self.read = nn.Linear(features, directions_KA.shape[1])

    @property
    def weight(self) -> torch.Tensor:
        """(K, D), each class's direction in feature space."""
        return self.directions_KA @ self.read.weight

    def forward(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Map (N, D) to (N, K), each within ``scale`` of 0; N may be 0."""
        logits_NK = self.scale * F.linear(unit_vectors(self.read(features_ND)), self.directions_KA)
        if self.training:
            return torch.where(self.unseen_K, logits_NK.detach(), logits_NK)
        return logits_NK


def check_attributes(
    attributes: Sequence[Sequence[float]], unseen: Sequence[int], classes: int
) -> None:
    """Refuse attributes that do not fit ``classes`` classes.

    Raises:
        ConfigurationError: naming the fault.
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


def make_head(settings: ModelSettings, features: int, classes: int) -> nn.Module:
    """Build the head named by ``model.head``, from vectors (N, D) to logits (N, K).

    Raises:
        ConfigurationError: if it needs class knowledge that is missing, or a component is
            broken.
    """
    component = HEADS.get(settings.head)
    made: nn.Module = component.make(features, classes, settings.settings_of(component))
    return made


@HEADS.register("linear")
def _linear(features: int, classes: int, settings: ModelSettings) -> nn.Module:
    return LinearHead(features, classes)


@HEADS.register("cosine")
def _cosine(features: int, classes: int, settings: ModelSettings) -> nn.Module:
    return CosineHead(features, classes, settings.cosine_scale)


@HEADS.register("subspace")
def _subspace(features: int, classes: int, settings: ModelSettings) -> nn.Module:
    from fgvc_core.models.subspace import public_directions

    return SubspaceHead(public_directions(settings, features), classes)


@HEADS.register("whitened")
def _whitened(features: int, classes: int, settings: ModelSettings) -> nn.Module:
    # Lazy import: directions read pre-trained weights.
    from fgvc_core.models.subspace import public_directions

    return WhitenedHead(public_directions(settings, features), classes)


@HEADS.register("multilevel")
def _multilevel(features: int, classes: int, settings: ModelSettings) -> nn.Module:
    check_groups(settings.class_groups, classes)
    return MultiLevelHead(features, settings.class_groups)


@HEADS.register("semantic")
def _semantic(features: int, classes: int, settings: ModelSettings) -> nn.Module:
    check_attributes(settings.class_attributes, settings.unseen_classes, classes)
    return AttributeHead(
        features, settings.class_attributes, settings.cosine_scale, settings.unseen_classes
    )
