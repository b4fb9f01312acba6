"""Pooling of a feature map to one vector, and scaling of that vector.

Scaling. The signed square root reduces burstiness, where a few channels respond to one large
pattern (Perronnin et al. 2010, "Improving the Fisher Kernel for Large-Scale Image
Classification", section 3.3; B-CNN, Lin et al. 2015, https://arxiv.org/abs/1504.07889, section
3.1), and brings skewed activations closer to the Gaussians that a discriminant analysis assumes.
Unit length removes the picture's contrast. Neither has parameters or couples examples. On nearly
Gaussian features the root has no effect.

Second-order pooling: correlations of channels instead of means. Bilinear CNN: Lin et al. 2015,
https://arxiv.org/abs/1504.07889, with both streams shared. Fast MPN-COV: Li et al. 2018, "Towards
Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root
Normalization", https://arxiv.org/abs/1712.01034. A 1x1 convolution first reduces the map to d
channels; the vector has d (d + 1) / 2 entries. Cost: d^2 H W, ten d x d products for the root,
and a head d / 2 times as large, which a federation sends each round. Effect: +1.3 points on
CUB, a loss on Cars and Aircraft. With a frozen backbone the convolution stays a random projection.

Moments: beside each channel's mean its standard deviation over positions, which tells a texture
from an even surface of the same mean (Huang and Belongie 2017, https://arxiv.org/abs/1703.06868,
section 3, calls the two a picture's style). No parameters; a vector twice as long. It helps where a
map is early enough to show texture, and the last map is not.

Learned parts: attention maps computed from the feature map, and one vector per map. Zheng et al.
2017, "Learning Multi-Attention Convolutional Neural Network" (MA-CNN), section 3,
https://openaccess.thecvf.com/content_iccv_2017/html/Zheng_Learning_Multi-Attention_Convolutional_ICCV_2017_paper.html;
Hu et al. 2019, "See Better Before Looking Closer" (bilinear attention pooling), section 3.1,
https://arxiv.org/abs/1901.09891. Here each map is a softmax over positions of a 1x1 convolution,
so that it sums to one without batch normalization. Nothing defines a part: ``loss.diversity``
keeps the maps apart. Cost: K C H W, and a head K times as large. Limits: maps may converge to the
background or to one place, part vectors are means where a maximum may work better, and with a
frozen backbone the maps stay random.
"""

import torch
from torch import nn
from torch.nn import functional as F

from fgvc_core.components import POOLINGS
from fgvc_core.errors import ConfigurationError
from fgvc_core.models.settings import ModelSettings

_FLOOR = 1e-6
"""Below this value the root is linear, because its slope is unbounded at zero."""


class Scaling(nn.Module):
    """Scaling of a vector: ``none``, ``root``, ``unit`` or ``root-unit``."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Map (N, D) to the same shape; N may be 0."""
        if self.kind.startswith("root"):
            size_ND = features_ND.abs()
            features_ND = features_ND * size_ND.clamp_min(_FLOOR).rsqrt()
        if self.kind.endswith("unit"):
            features_ND = F.normalize(features_ND, dim=1)
        return features_ND


ITERATIONS = 5
"""Newton-Schulz iterations, as in the paper's section 3.2."""

_LEAST = 1e-6


class SecondOrderPooling(nn.Module):
    """Second-order pooling.

    Args:
        kind: ``bilinear`` or ``mpncov``.
        channels: C of the map.
        reduced: d, number of channels after the 1x1 convolution.
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
        """Map (N, C, H, W) to (N, d (d + 1) / 2); N may be 0."""
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
    """Approximate square roots of symmetric positive semi-definite matrices (N, d, d).

    Coupled Newton-Schulz iteration on the matrix divided by its trace, then rescaled. It uses
    products only, so it is fast on a GPU and differentiable everywhere. After few iterations the
    smallest eigenvalues are still below their root, as the method intends.
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
    """K part vectors, concatenated.

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
        """Map (N, C, H, W) to (N, K C); N may be 0."""
        return self.with_maps(map_NCHW)[0]

    def with_maps(self, map_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors (N, K C), and attention maps (N, K, H, W), each with sum 1."""
        flat_NPC = map_NCHW.flatten(2).transpose(1, 2)
        maps_NKP = self.find(flat_NPC).transpose(1, 2).softmax(dim=2)
        found_NKC = maps_NKP @ flat_NPC
        return found_NKC.flatten(1), maps_NKP.unflatten(2, tuple(map_NCHW.shape[2:]))


class Pooling(nn.Module):
    """Mean, maximum, the mean of the two, both concatenated, or mean and deviation, over positions.

    Args:
        kind: ``avg``, ``max``, ``avgmax``, ``both`` or ``moments``.
        channels: C of the map.
    """

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind = kind
        self.out_dim = 2 * channels if kind in ("both", "moments") else channels

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C), or (N, 2 C) for ``both`` and ``moments``."""
        if self.kind == "avg":
            return map_NCHW.mean(dim=(2, 3))
        if self.kind == "max":
            return map_NCHW.amax(dim=(2, 3))
        if self.kind == "moments":
            means_NC = map_NCHW.mean(dim=(2, 3))
            variances_NC = (map_NCHW - means_NC[:, :, None, None]).square().mean(dim=(2, 3))
            # The root's slope is unbounded at zero.
            return torch.cat([means_NC, variances_NC.clamp_min(_LEAST).sqrt()], dim=1)
        means_NC, maxima_NC = map_NCHW.mean(dim=(2, 3)), map_NCHW.amax(dim=(2, 3))
        if self.kind == "both":
            return torch.cat([means_NC, maxima_NC], dim=1)
        return (means_NC + maxima_NC) / 2


class GeneralisedMean(nn.Module):
    """Generalized mean with a learned exponent p: the mean for 1, the maximum for large p.

    Radenovic et al. 2018, "Fine-tuning CNN Image Retrieval with No Human Annotation", section
    3.2, https://arxiv.org/abs/1711.02512. One parameter. Its gain is below one point, and with
    a frozen backbone p keeps its initial value.

    Args:
        channels: C of the map.
        power: Initial p.
    """

    def __init__(self, channels: int, power: float) -> None:
        super().__init__()
        self.kind = f"gem-{power:g}"
        self.out_dim = channels
        self.power = nn.Parameter(torch.tensor(power))

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C); values are clamped to at least 1e-6."""
        powers_NCHW = map_NCHW.clamp_min(1e-6).pow(self.power)
        return powers_NCHW.mean(dim=(2, 3)).pow(1 / self.power)


AnyPooling = Pooling | GeneralisedMean | SecondOrderPooling | PartPooling


def make_pooling(settings: ModelSettings, channels: int) -> AnyPooling:
    """Build the pooling named by ``model.pooling``, for maps of ``channels`` channels.

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
        # Part of the key of cached features.
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


@POOLINGS.register("moments")
def _moments(channels: int, settings: ModelSettings) -> Pooling:
    return Pooling("moments", channels)


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
