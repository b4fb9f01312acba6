"""Learnt parts: a few maps that each look at one place, and what the picture has there.

Attention maps from the feature map itself, and a vector for each: Zheng et al. 2017, "Learning
Multi-Attention Convolutional Neural Network" (MA-CNN), section 3,
https://openaccess.thecvf.com/content_iccv_2017/html/Zheng_Learning_Multi-Attention_Convolutional_ICCV_2017_paper.html;
Hu et al. 2019, "See Better Before Looking Closer" (bilinear attention pooling), section 3.1,
https://arxiv.org/abs/1901.09891. Here each map is a softmax over positions of a 1x1 convolution,
so that it sums to one and needs no normalisation over the batch. Nothing says what a part is:
``loss.diversity`` (:mod:`fgvc_core.losses.diversity`) keeps the maps apart. Cost: K C H W, and a
head K times as long, which a federation sends each round. A warning: maps may settle on the
background or on one place, part vectors are means where a maximum may do better, and with a
frozen backbone the maps stay as they were drawn.
"""

import torch
from torch import nn


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
