"""What is done to a pooled vector before the head.

The signed square root evens out bursts, a few channels that answer to one large pattern
(Perronnin et al. 2010, "Improving the Fisher Kernel for Large-Scale Image Classification",
section 3.3; B-CNN, Lin et al. 2015, https://arxiv.org/abs/1504.07889, section 3.1), and makes
skewed activations more like the Gaussians that a discriminant analysis assumes. Scaling to
length 1 takes the picture's contrast out. Neither has parameters or couples examples. A
warning: on features that are nearly Gaussian already the root does nothing.
"""

import torch
from torch import nn
from torch.nn import functional as F

_FLOOR = 1e-6
"""The root's slope is unbounded at zero: below this value it is a straight line."""


class Scaling(nn.Module):
    """``none``, ``root``, ``unit`` or ``root-unit``.

    Args:
        kind: One of these.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, features_ND: torch.Tensor) -> torch.Tensor:
        """(N, D) to the same; N may be 0."""
        if self.kind.startswith("root"):
            size_ND = features_ND.abs()
            features_ND = features_ND * size_ND.clamp_min(_FLOOR).rsqrt()
        if self.kind.endswith("unit"):
            features_ND = F.normalize(features_ND, dim=1)
        return features_ND
