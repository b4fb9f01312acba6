"""Two random views of one picture, for learning without labels.

Random cropping and colour are what such methods live on (Chen et al. 2020, section 3,
https://arxiv.org/abs/2002.05709). A warning for fine-grained classes: a backbone learns not to
see what views differ in. Strong colour hides the marks that are colours, small crops cut off the
part that tells, so the defaults are milder than those for ImageNet.
"""

import math

import torch
from torch.nn import functional as F

from fgvc_core.data.settings import AugmentSettings
from fgvc_core.data.transforms import Augment

_ASPECT = math.log(4 / 3)
# ITU-R BT.601 luma, as Pillow and torchvision use it.
_LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


class RandomViews:
    """Random crop, mirror, rotation, colour and grey, drawn for each picture on its own.

    Args:
        crop: Smallest share of the area that a view shows, above 0 to 1.
        rotation: Largest rotation either way, in degrees.
        color: Largest relative change of brightness, contrast and saturation, 0 to 1.
        grey: Share of views without colour, 0 to 1.
    """

    def __init__(self, crop: float, rotation: float, color: float, grey: float) -> None:
        self._crop = crop
        self._grey = grey
        self._vary = Augment(AugmentSettings(rotation=rotation, zoom=0.0, flip=True, color=color))

    def __call__(self, images_NCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """uint8 (N, 3, S, S) to the same; equal generators give equal views."""
        if not len(images_NCHW):
            return images_NCHW
        cropped_NCHW = self._cut(images_NCHW, generator)
        varied_NCHW = self._vary(cropped_NCHW, generator)
        chosen_N = torch.rand(len(images_NCHW), generator=generator) < self._grey
        if chosen_N.any():
            grey_M1HW = (varied_NCHW[chosen_N] * _LUMA).sum(dim=1, keepdim=True)
            varied_NCHW[chosen_N] = grey_M1HW.round().to(torch.uint8).expand(-1, 3, -1, -1)
        return varied_NCHW

    def _cut(self, images_NCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        drawn_4N = torch.rand((4, len(images_NCHW)), generator=generator)
        area_N = self._crop + (1 - self._crop) * drawn_4N[0]
        aspect_N = (_ASPECT * (2 * drawn_4N[1] - 1)).exp()
        wide_N = (area_N * aspect_N).sqrt().clamp(max=1.0)
        tall_N = (area_N / aspect_N).sqrt().clamp(max=1.0)
        theta_N23 = torch.zeros(len(images_NCHW), 2, 3)
        # In affine_grid's coordinates a picture reaches from -1 to 1.
        theta_N23[:, 0, 0], theta_N23[:, 1, 1] = wide_N, tall_N
        theta_N23[:, 0, 2] = (1 - wide_N) * (2 * drawn_4N[2] - 1)
        theta_N23[:, 1, 2] = (1 - tall_N) * (2 * drawn_4N[3] - 1)
        grid_NHW2 = F.affine_grid(theta_N23, list(images_NCHW.shape), align_corners=False)
        cut_NCHW = F.grid_sample(
            images_NCHW.float(), grid_NHW2, padding_mode="reflection", align_corners=False
        )
        return cut_NCHW.round_().clamp_(0, 255).to(torch.uint8)
