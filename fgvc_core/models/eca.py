"""Efficient channel attention: one weight a channel, from its neighbours' means.

Wang et al. 2020, "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural
Networks", section 3, https://arxiv.org/abs/1910.03151. A handful of parameters, no
normalisation, no coupling of examples. A warning: on small networks its gain is
within the noise between seeds more often than not.
"""

import math

import torch
from torch import nn


class ChannelAttention(nn.Module):
    """Scales each channel by a sigmoid of a 1-D convolution over the channels' means.

    Args:
        channels: C, which fixes the kernel's odd length (equation 12 with gamma 2, b 1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        length = int(abs((math.log2(channels) + 1) / 2))
        length = max(length if length % 2 else length + 1, 3)
        self.conv = nn.Conv1d(1, 1, length, padding=length // 2, bias=False)

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same; N may be 0."""
        return map_NCHW * self.weights(map_NCHW)

    def weights(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C, 1, 1), between 0 and 1."""
        means_NC = map_NCHW.mean(dim=(2, 3))
        return self.conv(means_NC.unsqueeze(1)).squeeze(1).sigmoid()[:, :, None, None]
