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
        length_N1 = features_ND.norm(dim=1, keepdim=True)
        unit_ND = features_ND / length_N1.clamp_min(_SHORTEST)
        unit_ND = torch.where(length_N1 > _SHORTEST, unit_ND, 0.0)
        return self.scale * F.linear(unit_ND, directions_KD)
