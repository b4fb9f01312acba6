"""A classifier whose reasons are known: red speaks for class 0, blue for class 1."""

import numpy as np
import torch
from torch import nn

from fgvc_core.models.classifier import FineGrainedClassifier
from fgvc_core.models.heads import LinearHead
from fgvc_core.models.pooling import Pooling, Scaling
from fgvc_core.models.weights import InputSpec

SIZE = 64


class Colours(nn.Module):
    """Channel 0 is how red each 4 x 4 patch is, channel 1 how blue."""

    stage_names = ("stem",)
    idle: frozenset[str] = frozenset()
    out_channels = 2

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 4, stride=4, bias=False)
        with torch.no_grad():
            self.stem.weight.zero_()
            self.stem.weight[0, 0] = self.stem.weight[1, 2] = 1 / 16

    def forward(self, images_NCHW):
        return self.stem(images_NCHW).relu()


def coloured(mirrored=False, attention=None) -> FineGrainedClassifier:
    head = LinearHead(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
    spec = InputSpec(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    parts = (Colours(), attention or nn.Identity(), Pooling("avg", 2), Scaling("none"), 0.0, head)
    return FineGrainedClassifier(*parts, spec, mirrored).eval()


def two_patches() -> np.ndarray:
    """One view: a red patch at upper left, a blue one at lower right, black elsewhere."""
    view_HWC = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    view_HWC[8:16, 8:16, 0] = 255
    view_HWC[40:56, 44:56, 2] = 255
    return view_HWC
