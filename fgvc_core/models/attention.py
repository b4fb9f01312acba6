"""Attention over positions and channels; each module starts as the identity.

The parts for ``model.attention`` start as the identity so that a pre-trained network keeps its
function: gates are ``2 * sigmoid(.)`` after a last layer at zero, and added terms have a learned
gain that starts at zero. None normalizes over the batch, which would couple examples.

- ECA: Wang et al. 2020, "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural
  Networks", section 3, https://arxiv.org/abs/1910.03151. A handful of parameters; on small
  networks its gain is mostly within the noise between seeds. ``ChannelAttention`` is the published
  form, whose gate starts at 1/2; the attention ResNet compensates for that.
- Spatial attention: after the spatial half of CBAM, Woo et al. 2018, section 3.2,
  https://arxiv.org/abs/1807.06521, a map from the mean and the maximum over channels. Theirs ends
  in a BatchNorm, whose statistics do not survive federation. The weakest part of such modules; it
  can hurt, so compare with ``attention = "none"``.
- Channel attention: squeeze-and-excitation, Hu et al. 2018, section 3,
  https://arxiv.org/abs/1709.01507; ECA; and the channel half of CBAM, section 3.1. Cost: a few
  hundredths of a stage's time, and 2 C^2 / reduction parameters (ECA: a handful). Behind a
  well-tuned network the gain is below one point, if any.
- Non-local block: Wang et al. 2018, section 3.3 (embedded Gaussian),
  https://arxiv.org/abs/1711.07971. Dual attention: Fu et al. 2019, sections 3.2 and 3.3,
  https://arxiv.org/abs/1809.02983. Cost: (H W)^2 C for positions, C^2 H W for channels, so use
  them after late stages. On small data sets they overfit.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from fgvc_core.components import ATTENTIONS


class ChannelAttention(nn.Module):
    """ECA: scales each channel by a sigmoid of a 1-D convolution over the channels' means.

    Args:
        channels: C, which determines the odd kernel size (equation 12 with gamma 2, b 1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        length = int(abs((math.log2(channels) + 1) / 2))
        length = max(length if length % 2 else length + 1, 3)
        self.conv = nn.Conv1d(1, 1, length, padding=length // 2, bias=False)

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape; N may be 0."""
        return map_NCHW * self.weights(map_NCHW)

    def weights(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C, 1, 1), between 0 and 1."""
        means_NC = map_NCHW.mean(dim=(2, 3))
        return self.conv(means_NC.unsqueeze(1)).squeeze(1).sigmoid()[:, :, None, None]


KERNEL = 7


class SpatialAttention(nn.Module):
    """Scales each position by a gate between 0 and 2 that starts at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, KERNEL, padding=KERNEL // 2)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape; N may be 0."""
        pooled_N2HW = torch.cat(
            [map_NCHW.mean(dim=1, keepdim=True), map_NCHW.amax(dim=1, keepdim=True)], dim=1
        )
        return map_NCHW * (2 * self.conv(pooled_N2HW).sigmoid())


REDUCTION = 16


class SqueezeExcitation(nn.Module):
    """One gate per channel from all channels' means, optionally also from their maxima.

    Args:
        channels: C.
        maxima: Whether the maxima also pass through the same layers and are added (CBAM).
    """

    def __init__(self, channels: int, maxima: bool = False) -> None:
        super().__init__()
        middle = max(channels // REDUCTION, 4)
        self.maxima = maxima
        self.reduce = nn.Linear(channels, middle)
        self.expand = nn.Linear(middle, channels)
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape; N may be 0."""
        scores_NC = self._scores(map_NCHW.mean(dim=(2, 3)))
        if self.maxima:
            scores_NC = scores_NC + self._scores(map_NCHW.amax(dim=(2, 3)))
        return map_NCHW * (2 * scores_NC.sigmoid())[:, :, None, None]

    def _scores(self, pooled_NC: torch.Tensor) -> torch.Tensor:
        return self.expand(F.relu(self.reduce(pooled_NC)))


class EfficientChannelGate(ChannelAttention):
    """ECA's gate times two, from a convolution that starts at zero.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        nn.init.zeros_(self.conv.weight)

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape; N may be 0."""
        return map_NCHW * (2 * self.weights(map_NCHW))


class NonLocal(nn.Module):
    """Adds to each position a weighted mean over similar positions.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle = max(channels // 2, 1)
        self.query = nn.Conv2d(channels, middle, 1)
        self.key = nn.Conv2d(channels, middle, 1)
        self.value = nn.Conv2d(channels, middle, 1)
        self.out = nn.Conv2d(middle, channels, 1)
        self.gain = nn.Parameter(torch.zeros(()))
        self._scale = middle**-0.5

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape; N may be 0."""
        height, width = map_NCHW.shape[2:]
        query_NCP, key_NCP, value_NCP = (
            part(map_NCHW).flatten(2) for part in (self.query, self.key, self.value)
        )
        alike_NPP = (query_NCP.transpose(1, 2) @ key_NCP * self._scale).softmax(dim=2)
        found_NCP = value_NCP @ alike_NPP.transpose(1, 2)
        return map_NCHW + self.gain * self.out(found_NCP.unflatten(2, (height, width)))


class ChannelRelations(nn.Module):
    """Adds to each channel a weighted mean over channels active at the same positions."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape; N may be 0."""
        flat_NCP = map_NCHW.flatten(2)
        # Divided by the number of positions, so that the softmax does not sharpen with size.
        alike_NCC = (flat_NCP @ flat_NCP.transpose(1, 2) / max(flat_NCP.shape[2], 1)).softmax(dim=2)
        return map_NCHW + self.gain * (alike_NCC @ flat_NCP).view_as(map_NCHW)


class DualAttention(nn.Module):
    """Attention over positions and over channels in parallel; both terms are added.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.positions = NonLocal(channels)
        self.channels = ChannelRelations()

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape; N may be 0."""
        return self.positions(map_NCHW) + self.channels(map_NCHW) - map_NCHW


@ATTENTIONS.register("none")
def _none(channels: int, settings: object) -> nn.Module:
    return nn.Identity()


@ATTENTIONS.register("spatial")
def _spatial(channels: int, settings: object) -> nn.Module:
    return SpatialAttention()


@ATTENTIONS.register("se")
def _squeeze(channels: int, settings: object) -> nn.Module:
    return SqueezeExcitation(channels)


@ATTENTIONS.register("eca")
def _eca(channels: int, settings: object) -> nn.Module:
    return EfficientChannelGate(channels)


@ATTENTIONS.register("cbam")
def _cbam(channels: int, settings: object) -> nn.Module:
    return nn.Sequential(SqueezeExcitation(channels, maxima=True), SpatialAttention())


@ATTENTIONS.register("nonlocal")
def _nonlocal(channels: int, settings: object) -> nn.Module:
    return NonLocal(channels)


@ATTENTIONS.register("dual")
def _dual(channels: int, settings: object) -> nn.Module:
    return DualAttention(channels)
