"""Spatial attention with no normalisation that starts as the identity.

After the spatial half of Woo et al. 2018, "CBAM", section 3.2,
https://arxiv.org/abs/1807.06521: a map from the mean and the maximum over channels.
Theirs ends in a BatchNorm, which couples examples and has statistics that do not
survive federation; here the convolution starts at zero and the gate is
``2 * sigmoid(.)``, so that a pre-trained network keeps its meaning at first. A
warning: spatial gates are the weakest part of such modules and can hurt; compare
with ``attention = "none"``.
"""

import torch
from torch import nn

KERNEL = 7


class SpatialAttention(nn.Module):
    """Scales each position by a gate between 0 and 2 that starts at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, KERNEL, padding=KERNEL // 2)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same; N may be 0."""
        pooled_N2HW = torch.cat(
            [map_NCHW.mean(dim=1, keepdim=True), map_NCHW.amax(dim=1, keepdim=True)], dim=1
        )
        return map_NCHW * (2 * self.conv(pooled_N2HW).sigmoid())
