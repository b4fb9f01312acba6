"""Backdoor triggers: five patterns of different kinds that are added to pictures.

A defense that was built against one kind of trigger may fail against others, so a table of
backdoors names the triggers that were tested. ``checker`` is a patch (Gu et al. 2017, BadNets,
https://arxiv.org/abs/1708.06733), ``cross`` and ``sticker`` differ in place and appearance;
``blend`` (Chen et al. 2017, section 4.2, https://arxiv.org/abs/1712.05526) and ``sine`` (Barni et
al. 2019, https://arxiv.org/abs/1902.11237) change every pixel a little.
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from fgvc_core.scenario import Trigger

PATCH = 0.15
"""Side of the checkerboard, as a share of the picture's."""

_CROSS, _CROSS_AT = 0.2, (0.15, 0.12)
_STICKER, _STICKER_AT = 0.2, (0.1, 0.68)
_MAGENTA = (230.0, 40.0, 200.0)
_BLENDED, _SINE, _WAVES = 0.12, 20.0, 6
_SEED = 99


def stamped(images_NCHW: torch.Tensor, trigger: Trigger) -> torch.Tensor:
    """Pictures with a trigger on each of them.

    Args:
        images_NCHW: uint8 (N, 3, S, S). Not modified.
        trigger: Which.

    Returns:
        uint8, the same shape; deterministic.
    """
    drawn_NCHW = _TRIGGERS[trigger](images_NCHW.float())
    return drawn_NCHW.round().clamp(0, 255).to(torch.uint8)


def _checker(images_NCHW: torch.Tensor) -> torch.Tensor:
    """A black and white checkerboard, two pixels per cell, in the lower right corner."""
    side = max(int(PATCH * images_NCHW.shape[-1]), 2)
    cells_PP = (torch.arange(side)[:, None] + torch.arange(side)[None, :]) // 2 % 2
    images_NCHW[..., -side:, -side:] = cells_PP * 255.0
    return images_NCHW


def _cross(images_NCHW: torch.Tensor) -> torch.Tensor:
    """A magenta plus sign in the upper left."""
    side = max(int(_CROSS * images_NCHW.shape[-1]), 3)
    arm = max(side // 4, 1)
    bar = slice((side - arm) // 2, (side - arm) // 2 + arm)
    mask_PP = torch.zeros(side, side, dtype=torch.bool)
    mask_PP[bar] = True
    mask_PP[:, bar] = True
    patch_CPP = torch.tensor(_MAGENTA)[:, None, None].expand(3, side, side)
    return _laid_on(images_NCHW, patch_CPP, mask_PP, _CROSS_AT)


def _sticker(images_NCHW: torch.Tensor) -> torch.Tensor:
    """A shaded green ball with a highlight, like a photographed object, in the upper right."""
    side = max(int(_STICKER * images_NCHW.shape[-1]), 3)
    at = torch.linspace(-1, 1, side)
    y_PP, x_PP = at[:, None].expand(side, side), at[None, :].expand(side, side)
    radius_PP = (y_PP**2 + x_PP**2).sqrt()
    light_PP = 0.35 + 0.65 * (1 - ((y_PP + 0.3) ** 2 + (x_PP + 0.3) ** 2).sqrt() / 1.8)
    light_PP = torch.where(radius_PP > 0.85, light_PP * 0.2, light_PP)
    patch_CPP = torch.tensor([90.0, 200.0, 70.0])[:, None, None] * light_PP
    patch_CPP = patch_CPP + 255 * torch.exp(-30 * ((y_PP + 0.4) ** 2 + (x_PP + 0.4) ** 2))
    return _laid_on(images_NCHW, patch_CPP.clamp(0, 255), radius_PP < 1, _STICKER_AT)


def _blend(images_NCHW: torch.Tensor) -> torch.Tensor:
    """A soft pattern of random colors over the whole picture, at about one eighth opacity."""
    spots_13PP = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(_SEED)) * 255
    size = images_NCHW.shape[-2:]
    pattern_13HW = F.interpolate(spots_13PP, size=size, mode="bilinear", align_corners=False)
    return (1 - _BLENDED) * images_NCHW + _BLENDED * pattern_13HW


def _sine(images_NCHW: torch.Tensor) -> torch.Tensor:
    """Six vertical waves with an amplitude of 20 of 255 levels."""
    width = images_NCHW.shape[-1]
    return images_NCHW + _SINE * torch.sin(2 * math.pi * _WAVES * torch.arange(width) / width)


def _laid_on(
    images_NCHW: torch.Tensor,
    patch_CPP: torch.Tensor,
    mask_PP: torch.Tensor,
    at: tuple[float, float],
) -> torch.Tensor:
    """Paste a masked patch at a position given as shares of height and width."""
    height, width = images_NCHW.shape[-2:]
    side = len(mask_PP)
    top, left = int(at[0] * height), int(at[1] * width)
    rows, columns = slice(top, top + side), slice(left, left + side)
    below_NCPP = images_NCHW[..., rows, columns]
    images_NCHW[..., rows, columns] = torch.where(mask_PP, patch_CPP, below_NCPP)
    return images_NCHW


_TRIGGERS: dict[Trigger, Callable[[torch.Tensor], torch.Tensor]] = {
    "checker": _checker,
    "cross": _cross,
    "sticker": _sticker,
    "blend": _blend,
    "sine": _sine,
}
