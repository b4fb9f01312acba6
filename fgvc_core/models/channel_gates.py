"""Channel attention that starts as the identity.

Squeeze-and-excitation: Hu et al. 2018, section 3, https://arxiv.org/abs/1709.01507. ECA: Wang et
al. 2020, section 3, https://arxiv.org/abs/1910.03151. The channel half of CBAM: Woo et al. 2018,
section 3.1, https://arxiv.org/abs/1807.06521. In each the last layer starts at zero and the gate is
``2 * sigmoid(.)``, so that a pre-trained network keeps its meaning. Cost: a few hundredths of a
stage's time, and 2 C^2 / reduction parameters (ECA: a handful). A warning: behind a
well-tuned network they gain less than a point where they gain at all.
"""

import torch
from torch import nn
from torch.nn import functional as F

from fgvc_core.models.eca import ChannelAttention

REDUCTION = 16


class SqueezeExcitation(nn.Module):
    """A gate a channel from all channels' means, and from their maxima too if asked.

    Args:
        channels: C.
        maxima: Whether the maxima pass through the same layers and add to the means (CBAM).
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
        """(N, C, H, W) to the same; N may be 0."""
        scores_NC = self._scores(map_NCHW.mean(dim=(2, 3)))
        if self.maxima:
            scores_NC = scores_NC + self._scores(map_NCHW.amax(dim=(2, 3)))
        return map_NCHW * (2 * scores_NC.sigmoid())[:, :, None, None]

    def _scores(self, pooled_NC: torch.Tensor) -> torch.Tensor:
        return self.expand(F.relu(self.reduce(pooled_NC)))


class EfficientChannelGate(ChannelAttention):
    """ECA's gate, doubled, from a convolution that starts at zero.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        nn.init.zeros_(self.conv.weight)

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same; N may be 0."""
        return map_NCHW * (2 * self.weights(map_NCHW))
