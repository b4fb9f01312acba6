"""From one vector to logits."""

import torch
from torch import nn
from torch.nn import functional as F

_SHORTEST = 1e-12
"""Vectors no longer than this count as zero."""


class LinearHead(nn.Linear):
    """Weights and bias; starts at zero, so that every class begins equally likely.

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
    The vector is bounded to unit length, whatever a site's camera does to contrast.

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
        """(N, D) to (N, K), each within plus and minus ``scale``.

        A zero vector gives 0 and no gradient: that of its direction is unbounded.
        """
        directions_KD = F.normalize(self.weight, dim=1)
        return self.scale * F.linear(unit_vectors(features_ND), directions_KD)


class SubspaceHead(nn.Module):
    """A linear classifier on unit vectors in a public subspace, around a centre.

    What of a picture can be released is as large as the vectors are long and as noisy as
    they have dimensions: few directions, chosen without a private picture, are the better
    part of accuracy under differential privacy.

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
        """(N, D) to unit vectors (N, P), before the centre is taken off."""
        return unit_vectors(F.linear(unit_vectors(features_ND), self.directions_PD))

    def centred(self, vectors_NP: torch.Tensor) -> torch.Tensor:
        """Projected vectors to unit vectors around the centre."""
        return unit_vectors(vectors_NP - self.centre)

    def forward(self, features_ND: torch.Tensor) -> torch.Tensor:
        """(N, D) to (N, K)."""
        return F.linear(self.centred(self.project(features_ND)), self.weight, self.bias)


def unit_vectors(vectors_NP: torch.Tensor) -> torch.Tensor:
    """Rows (N, P) at length 1; a row of zeros stays one, without a gradient."""
    length_N1 = vectors_NP.norm(dim=1, keepdim=True)
    return torch.where(length_N1 > _SHORTEST, vectors_NP / length_N1.clamp_min(_SHORTEST), 0.0)
