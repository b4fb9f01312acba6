"""The attention ResNet: weight-standardised, normaliser-free bottlenecks with ECA.

Brock et al. 2021, "Characterizing signal propagation to close the performance gap in
unnormalized ResNets", sections 3 and 4, https://arxiv.org/abs/2101.08692, with the
channel attention of :mod:`fgvc_core.models.eca`. Without BatchNorm nothing couples the
examples of a batch and there are no statistics to average between sites: the same
network serves alone, in a federation and under differential privacy. Weight
standardisation with channel attention held up under both in ANFR,
https://arxiv.org/abs/2410.02006.
"""

from dataclasses import dataclass

import torch
from timm.layers.std_conv import ScaledStdConv2d
from torch import nn
from torch.nn import functional as F

from fgvc_core.models.eca import ChannelAttention

ALPHA = 0.2
"""Share of each residual branch in its block's output (section 3)."""

SILU_GAIN = 1.7881293296813965
"""Restores unit variance after SiLU on a standard normal input (section 4)."""

ATTENTION_GAIN = 2.0
"""A fresh sigmoid gate halves the signal."""


@dataclass(frozen=True)
class Preset:
    """Shape of one network: stem, then four stages of (blocks, channels)."""

    stem: int
    blocks: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]
    deep_stem: bool = False


PRESETS = {
    "fieldmark_nano": Preset(16, (1, 1, 2, 1), (32, 64, 128, 256)),
    "fieldmark_tiny": Preset(32, (1, 2, 3, 2), (128, 256, 384, 512)),
    "fieldmark_small": Preset(48, (2, 3, 5, 2), (192, 384, 768, 1024)),
    "fieldmark_50": Preset(64, (3, 4, 6, 3), (256, 512, 1024, 2048), deep_stem=True),
}


class Activation(nn.Module):
    """SiLU scaled so that it keeps the variance of a standard normal input."""

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Any shape to the same."""
        return F.silu(map_NCHW) * SILU_GAIN


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with attention and a learnt gain.

    The gain starts at one: ``ALPHA`` keeps the branch small already, and from zero (SkipInit)
    the small presets did not leave chance level in 16 passes over the embedded set.

    Args:
        inputs: Channels in.
        outputs: Channels out; the middle has a quarter of them, at least 16.
        stride: 1 or 2.
        beta: One over the standard deviation expected at the input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, beta: float) -> None:
        super().__init__()
        middle = max(outputs // 4, 16)
        # The factors of activations and inputs are folded into the weights that follow:
        # multiplying the maps by them took a tenth of a training step.
        entry, inner = SILU_GAIN * beta, SILU_GAIN
        self.act = nn.SiLU()
        self.shortcut = (
            ScaledStdConv2d(inputs, outputs, 1, gamma=entry)
            if stride != 1 or inputs != outputs
            else None
        )
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.conv1 = ScaledStdConv2d(inputs, middle, 1, gamma=entry)
        self.conv2 = ScaledStdConv2d(middle, middle, 3, stride=stride, padding=1, gamma=inner)
        self.conv3 = ScaledStdConv2d(middle, outputs, 1, gamma=inner)
        self.attention = ChannelAttention(outputs)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        active_NCHW = self.act(map_NCHW)
        kept_NCHW = map_NCHW
        if self.shortcut is not None:
            kept_NCHW = self.shortcut(self.pool(active_NCHW))
        branch_NCHW = self.conv1(active_NCHW)
        branch_NCHW = self.conv2(self.act(branch_NCHW))
        branch_NCHW = self.conv3(self.act(branch_NCHW))
        weights_NC11 = self.attention.weights(branch_NCHW) * (ATTENTION_GAIN * ALPHA * self.gain)
        return torch.addcmul(kept_NCHW, branch_NCHW, weights_NC11)


class AttentionResNet(nn.Module):
    """A preset as a backbone: pictures to a map.

    Args:
        preset: Its shape.
    """

    stage_names = ("stem", "stage1", "stage2", "stage3", "stage4")
    idle: frozenset[str] = frozenset()

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.out_channels = preset.channels[-1]
        self.stem = _stem(preset)
        inputs, variance = preset.stem, 1.0
        for number, (blocks, outputs) in enumerate(
            zip(preset.blocks, preset.channels, strict=True), start=1
        ):
            stage = []
            for block in range(blocks):
                stride = 2 if block == 0 and number > 1 else 1
                stage.append(Bottleneck(inputs, outputs, stride, variance**-0.5))
                # A block with its own shortcut starts from a normalised input again.
                variance = (1.0 if block == 0 else variance) + ALPHA**2
                inputs = outputs
            self.add_module(f"stage{number}", nn.Sequential(*stage))
        self.act = Activation()

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, out_channels, H / 16, W / 16), or / 32 with the deep stem."""
        map_NCHW = images_NCHW
        for name in self.stage_names:
            map_NCHW = self.get_submodule(name)(map_NCHW)
        return self.act(map_NCHW)


def _stem(preset: Preset) -> nn.Module:
    if not preset.deep_stem:
        return ScaledStdConv2d(3, preset.stem, 3, stride=2, padding=1)
    half = preset.stem // 2
    return nn.Sequential(
        ScaledStdConv2d(3, half, 3, stride=2, padding=1),
        Activation(),
        ScaledStdConv2d(half, half, 3, padding=1),
        Activation(),
        ScaledStdConv2d(half, preset.stem, 3, stride=2, padding=1),
    )
