"""A spatial transformer: looks once, and turns, moves and enlarges the picture before the rest.

Jaderberg et al. 2015, "Spatial Transformer Networks", section 3, https://arxiv.org/abs/1506.02025.
A small network reads six numbers of an affine map off a thumbnail of the picture; the picture is
sampled along it. It starts as the identity (the last layer is zero), has no normalisation, and
looks at each picture alone, so that it may be used under differential privacy. Cost: a few
hundredths of a small network's step, and one more sampling of the picture. A warning: it learns
by what the classifier's error says of six numbers, which is little; it may drift off the subject,
and random views and a test-time zoom often do more.
"""

import torch
from torch import nn
from torch.nn import functional as F

THUMBNAIL = 32
"""Side of what the small network sees, in pixels."""


class SpatialTransformer(nn.Module):
    """Pictures to pictures of the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(8, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(256, 32),
            nn.ReLU(),
        )
        self.map = nn.Linear(32, 6)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def affine(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, 2, 3): output coordinates to input coordinates, each -1 to 1 over the picture."""
        thumbnails = F.interpolate(
            images_NCHW, size=(THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=False
        )
        changes_N23 = self.map(self.look(thumbnails.contiguous())).view(-1, 2, 3)
        return changes_N23 + torch.eye(2, 3, dtype=changes_N23.dtype, device=changes_N23.device)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) to the same, the border repeated where the map leaves it; N may be 0."""
        if not len(images_NCHW):
            return images_NCHW
        grid_NHW2 = F.affine_grid(
            self.affine(images_NCHW), list(images_NCHW.shape), align_corners=False
        )
        return F.grid_sample(images_NCHW, grid_NHW2, padding_mode="border", align_corners=False)
