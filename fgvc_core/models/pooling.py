"""From a map to one vector."""

import torch
from torch import nn


class Pooling(nn.Module):
    """Mean, maximum, or the mean of the two over positions.

    Args:
        kind: ``avg``, ``max`` or ``avgmax``.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C)."""
        if self.kind == "avg":
            return map_NCHW.mean(dim=(2, 3))
        if self.kind == "max":
            return map_NCHW.amax(dim=(2, 3))
        return (map_NCHW.mean(dim=(2, 3)) + map_NCHW.amax(dim=(2, 3))) / 2
