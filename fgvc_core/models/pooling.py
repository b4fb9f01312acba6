"""From a map to one vector."""

import torch
from torch import nn

from fgvc_core.models.parts import PartPooling
from fgvc_core.models.second_order import SecondOrderPooling
from fgvc_core.models.settings import ModelSettings


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
    """The pooling that a recipe names, for maps of so many channels."""
    if settings.pooling == "gem":
        return GeneralisedMean(channels, settings.gem_power)
    if settings.pooling in ("bilinear", "mpncov"):
        return SecondOrderPooling(settings.pooling, channels, settings.pooling_channels)
    if settings.pooling == "parts":
        return PartPooling(channels, settings.parts)
    return Pooling(settings.pooling, channels)
