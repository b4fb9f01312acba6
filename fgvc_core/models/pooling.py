"""From a feature map to one vector: pooling, and scaling of the vector.

From a map to one vector.

What is done to a pooled vector before the head.

The signed square root evens out bursts, a few channels that answer to one large pattern
(Perronnin et al. 2010, "Improving the Fisher Kernel for Large-Scale Image Classification",
section 3.3; B-CNN, Lin et al. 2015, https://arxiv.org/abs/1504.07889, section 3.1), and makes
skewed activations more like the Gaussians that a discriminant analysis assumes. Scaling to
length 1 takes the picture's contrast out. Neither has parameters or couples examples. A
warning: on features that are nearly Gaussian already the root does nothing.

Second-order pooling: which channels fire together, instead of how much each fires.

Bilinear CNN: Lin et al. 2015, https://arxiv.org/abs/1504.07889, with the two streams being one.
Fast MPN-COV: Li et al. 2018, "Towards Faster Training of Global Covariance Pooling Networks by
Iterative Matrix Square Root Normalization", https://arxiv.org/abs/1712.01034. A 1x1 convolution
first brings the map down to d channels; the vector has d (d + 1) / 2 entries. Cost: d^2 H W, and
ten d x d products for the root. A warning: +1.3 points on CUB, less than nothing on Cars and
Aircraft, and a head that is d / 2 times as long, which a federation sends each round. With a
frozen backbone the convolution stays as it was drawn: a random projection.

Learnt parts: a few maps that each look at one place, and what the picture has there.

Attention maps from the feature map itself, and a vector for each: Zheng et al. 2017, "Learning
Multi-Attention Convolutional Neural Network" (MA-CNN), section 3,
https://openaccess.thecvf.com/content_iccv_2017/html/Zheng_Learning_Multi-Attention_Convolutional_ICCV_2017_paper.html;
Hu et al. 2019, "See Better Before Looking Closer" (bilinear attention pooling), section 3.1,
https://arxiv.org/abs/1901.09891. Here each map is a softmax over positions of a 1x1 convolution,
so that it sums to one and needs no normalisation over the batch. Nothing says what a part is:
``loss.diversity`` keeps the maps apart. Cost: K C H W, and a head K times as long, which a
federation sends each round. A warning: maps may settle on the
background or on one place, part vectors are means where a maximum may do better, and with a
frozen backbone the maps stay as they were drawn.
"""

import torch
from torch import nn
from torch.nn import functional as F

from fgvc_core.components import POOLINGS
from fgvc_core.errors import ConfigurationError
from fgvc_core.models.settings import ModelSettings

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


class PartPooling(nn.Module):
    """K part vectors, one after the other.

    Args:
        channels: C of the map.
        parts: K.
    """

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__()
        self.kind = f"parts-{parts}"
        self.out_dim = channels * parts
        self.find = nn.Linear(channels, parts, bias=False)
        nn.init.normal_(self.find.weight, std=channels**-0.5)

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, K C); N may be 0."""
        return self.with_maps(map_NCHW)[0]

    def with_maps(self, map_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors (N, K C), and where each part looks, (N, K, H, W), each map's sum 1."""
        flat_NPC = map_NCHW.flatten(2).transpose(1, 2)
        maps_NKP = self.find(flat_NPC).transpose(1, 2).softmax(dim=2)
        found_NKC = maps_NKP @ flat_NPC
        return found_NKC.flatten(1), maps_NKP.unflatten(2, tuple(map_NCHW.shape[2:]))


class Pooling(nn.Module):
    """Mean, maximum, the mean of the two, or both one after the other, over positions.

    Args:
        kind: ``avg``, ``max``, ``avgmax`` or ``both``.
        channels: C of the map.
    """

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind = kind
        self.out_dim = 2 * channels if kind == "both" else channels

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C), or (N, 2 C) for ``both``."""
        if self.kind == "avg":
            return map_NCHW.mean(dim=(2, 3))
        if self.kind == "max":
            return map_NCHW.amax(dim=(2, 3))
        means_NC, maxima_NC = map_NCHW.mean(dim=(2, 3)), map_NCHW.amax(dim=(2, 3))
        if self.kind == "both":
            return torch.cat([means_NC, maxima_NC], dim=1)
        return (means_NC + maxima_NC) / 2


class GeneralisedMean(nn.Module):
    """The p-th root of the mean of p-th powers, with a learnt p: 1 is the mean, much the maximum.

    Radenovic et al. 2018, "Fine-tuning CNN Image Retrieval with No Human Annotation", section
    3.2, https://arxiv.org/abs/1711.02512. One parameter. A warning: its gain is under a point,
    and with a frozen backbone p stays where it starts.

    Args:
        channels: C of the map.
        power: Where p starts.
    """

    def __init__(self, channels: int, power: float) -> None:
        super().__init__()
        self.kind = f"gem-{power:g}"
        self.out_dim = channels
        self.power = nn.Parameter(torch.tensor(power))

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C); values below 1e-6 count as that."""
        powers_NCHW = map_NCHW.clamp_min(1e-6).pow(self.power)
        return powers_NCHW.mean(dim=(2, 3)).pow(1 / self.power)


AnyPooling = Pooling | GeneralisedMean | SecondOrderPooling | PartPooling


def make_pooling(settings: ModelSettings, channels: int) -> AnyPooling:
    """The pooling that ``model.pooling`` names, for maps of ``channels`` channels.

    Raises:
        ConfigurationError: if a component is broken.
    """
    component = POOLINGS.get(settings.pooling)
    own = settings.settings_of(component)
    made: AnyPooling = component.make(channels, own)
    if not isinstance(getattr(made, "out_dim", None), int):
        raise ConfigurationError(
            f"model.pooling = '{settings.pooling}' makes a {type(made).__name__} without out_dim.",
            why="The head is as long as the vector that a pooling gives.",
            remedy="Give it an attribute out_dim, the number of entries.",
        )
    if not hasattr(made, "kind"):
        # Cached features are told apart by it.
        made.kind = settings.pooling + ("" if own is settings else own.model_dump_json())
    return made


@POOLINGS.register("avg")
def _avg(channels: int, settings: ModelSettings) -> Pooling:
    return Pooling("avg", channels)


@POOLINGS.register("max")
def _max(channels: int, settings: ModelSettings) -> Pooling:
    return Pooling("max", channels)


@POOLINGS.register("avgmax")
def _avgmax(channels: int, settings: ModelSettings) -> Pooling:
    return Pooling("avgmax", channels)


@POOLINGS.register("both")
def _both(channels: int, settings: ModelSettings) -> Pooling:
    return Pooling("both", channels)


@POOLINGS.register("gem")
def _gem(channels: int, settings: ModelSettings) -> GeneralisedMean:
    return GeneralisedMean(channels, settings.gem_power)


@POOLINGS.register("bilinear")
def _bilinear(channels: int, settings: ModelSettings) -> SecondOrderPooling:
    return SecondOrderPooling("bilinear", channels, settings.pooling_channels)


@POOLINGS.register("mpncov")
def _mpncov(channels: int, settings: ModelSettings) -> SecondOrderPooling:
    return SecondOrderPooling("mpncov", channels, settings.pooling_channels)


@POOLINGS.register("parts")
def _parts(channels: int, settings: ModelSettings) -> PartPooling:
    return PartPooling(channels, settings.parts)
