"""Attention between positions and between channels, added to the map; starts as the identity.

Non-local block: Wang et al. 2018, section 3.3 (embedded Gaussian),
https://arxiv.org/abs/1711.07971. Dual attention: Fu et al. 2019, sections 3.2 and 3.3,
https://arxiv.org/abs/1809.02983. Theirs end in a BatchNorm or start from random weights; here
the output is multiplied by a learnt gain that starts at zero, and nothing is normalised over
the batch. Cost: (H W)^2 C for positions, C^2 H W for channels: use them after late stages.
A warning: on small data sets they over-fit before they help.
"""

import torch
from torch import nn


class NonLocal(nn.Module):
    """Each position adds what it finds at positions that resemble it.

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
        """(N, C, H, W) to the same; N may be 0."""
        height, width = map_NCHW.shape[2:]
        query_NCP, key_NCP, value_NCP = (
            part(map_NCHW).flatten(2) for part in (self.query, self.key, self.value)
        )
        alike_NPP = (query_NCP.transpose(1, 2) @ key_NCP * self._scale).softmax(dim=2)
        found_NCP = value_NCP @ alike_NPP.transpose(1, 2)
        return map_NCHW + self.gain * self.out(found_NCP.unflatten(2, (height, width)))


class ChannelRelations(nn.Module):
    """Each channel adds what channels that fire at the same positions hold; one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same; N may be 0."""
        flat_NCP = map_NCHW.flatten(2)
        # Per position, so that the softmax does not harden with the picture's size.
        alike_NCC = (flat_NCP @ flat_NCP.transpose(1, 2) / max(flat_NCP.shape[2], 1)).softmax(dim=2)
        return map_NCHW + self.gain * (alike_NCC @ flat_NCP).view_as(map_NCHW)


class DualAttention(nn.Module):
    """Positions and channels side by side; what both add is summed.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.positions = NonLocal(channels)
        self.channels = ChannelRelations()

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same; N may be 0."""
        return self.positions(map_NCHW) + self.channels(map_NCHW) - map_NCHW
