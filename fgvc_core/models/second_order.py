"""Second-order pooling: which channels fire together, instead of how much each fires.

Bilinear CNN: Lin et al. 2015, https://arxiv.org/abs/1504.07889, with the two streams being one.
Fast MPN-COV: Li et al. 2018, "Towards Faster Training of Global Covariance Pooling Networks by
Iterative Matrix Square Root Normalization", https://arxiv.org/abs/1712.01034. A 1x1 convolution
first brings the map down to d channels; the vector has d (d + 1) / 2 entries. Cost: d^2 H W, and
ten d x d products for the root. A warning: +1.3 points on CUB, less than nothing on Cars and
Aircraft, and a head that is d / 2 times as long, which a federation sends each round. With a
frozen backbone the convolution stays as it was drawn: a random projection.
"""

import torch
from torch import nn
from torch.nn import functional as F

ITERATIONS = 5
"""Of Newton and Schulz, as in the paper's section 3.2."""

_LEAST = 1e-6


class SecondOrderPooling(nn.Module):
    """``bilinear`` or ``mpncov``.

    Args:
        kind: Which.
        channels: C of the map.
        reduced: d.
    """

    upper_P2: torch.Tensor

    def __init__(self, kind: str, channels: int, reduced: int) -> None:
        super().__init__()
        self.kind = f"{kind}-{reduced}"
        self.root = kind == "mpncov"
        self.reduce = nn.Conv2d(channels, reduced, 1, bias=False)
        nn.init.orthogonal_(self.reduce.weight)
        upper_P2 = torch.triu_indices(reduced, reduced)
        self.register_buffer("upper_P2", upper_P2, persistent=False)
        self.out_dim = upper_P2.shape[1]

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, d (d + 1) / 2); N may be 0."""
        flat_NdP = self.reduce(map_NCHW).flatten(2)
        if self.root:
            flat_NdP = flat_NdP - flat_NdP.mean(dim=2, keepdim=True)
        second_Ndd = flat_NdP @ flat_NdP.transpose(1, 2) / flat_NdP.shape[2]
        if self.root:
            second_Ndd = matrix_square_root(second_Ndd)
        rows, columns = self.upper_P2
        vectors_NP = second_Ndd[:, rows, columns]
        if self.root:
            return vectors_NP
        size_NP = vectors_NP.abs()
        return F.normalize(vectors_NP * size_NP.clamp_min(_LEAST).rsqrt(), dim=1)


def matrix_square_root(matrix_Ndd: torch.Tensor) -> torch.Tensor:
    """Square roots of symmetric positive semi-definite matrices (N, d, d).

    Newton's and Schulz's coupled iteration on the matrix over its trace, then multiplied by the
    trace's root; products alone, so that it is fast on a GPU and differentiable anywhere.
    A few iterations leave the smallest eigenvalues short of their root: part of the method.
    """
    size = matrix_Ndd.shape[1]
    identity_dd = torch.eye(size, dtype=matrix_Ndd.dtype, device=matrix_Ndd.device)
    trace_N11 = matrix_Ndd.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None].clamp_min(_LEAST)
    root_Ndd = matrix_Ndd / trace_N11
    inverse_Ndd = identity_dd.expand_as(matrix_Ndd)
    for _ in range(ITERATIONS):
        step_Ndd = 1.5 * identity_dd - 0.5 * inverse_Ndd @ root_Ndd
        root_Ndd, inverse_Ndd = root_Ndd @ step_Ndd, step_Ndd @ inverse_Ndd
    return root_Ndd * trace_N11.sqrt()
