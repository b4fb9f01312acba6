"""Random patches on training pictures, labels kept: against patches that mean a class.

No honest picture carries a backdoor's trigger, so that nobody opposes what a hostile site teaches
about it. Pictures with patches of many kinds that keep their labels do: a model learns that a
patch says nothing about the class. (Rao et al. 2020, "Adversarial Training against
Location-Optimized Adversarial Patches", https://arxiv.org/abs/2005.02313, search for the worst
patch by gradients; here they are drawn, at a hundredth of the cost.) Each patch depends on its
own picture alone, so that it goes with differential privacy. A warning: where classes differ in
one small mark, a patch may lie on it.
"""

import torch
from torch.nn import functional as F

SIDES = (0.06, 0.3)
"""Each side of a patch, as a share of the picture's."""

KINDS = ("flat", "noise", "checker", "stripes", "piece")
"""One color, random cells, two colors in turn, bars, or another part of the same picture."""

_COARSEST = 8
# Half of the patterns are in black and white, or full colors.
_STRONG = 0.5


def patched(images_NCHW: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Put one patch each on about a share of the pictures.

    Args:
        images_NCHW: uint8 (N, 3, S, S).
        share: Probability for each picture, 0 to 1.
        generator: The only source of what is drawn.

    Returns:
        The same shape and type, the caller's own.
    """
    drawn_NCHW = images_NCHW.clone()
    chosen_N = torch.rand(len(images_NCHW), generator=generator) < share
    for position in chosen_N.nonzero()[:, 0].tolist():
        _put(drawn_NCHW[position], generator)
    return drawn_NCHW


def _put(image_CHW: torch.Tensor, generator: torch.Generator) -> None:
    """One random patch, in place."""
    size_H, size_W = image_CHW.shape[-2:]
    tall, wide = (_side(size, generator) for size in (size_H, size_W))
    top, left = _below(size_H - tall + 1, generator), _below(size_W - wide + 1, generator)
    kind = KINDS[_below(len(KINDS), generator)]
    if kind == "piece":
        other_top = _below(size_H - tall + 1, generator)
        other_left = _below(size_W - wide + 1, generator)
        patch_CPP = image_CHW[:, other_top : other_top + tall, other_left : other_left + wide]
        patch_CPP = patch_CPP.clone()
    else:
        patch_CPP = _pattern(kind, tall, wide, generator)
    image_CHW[:, top : top + tall, left : left + wide] = patch_CPP


def _pattern(kind: str, tall: int, wide: int, generator: torch.Generator) -> torch.Tensor:
    """uint8 (3, tall, wide)."""
    cell = 1 + _below(_COARSEST, generator)
    colors_2C = torch.rand(2, 3, generator=generator)
    if float(torch.rand(1, generator=generator)) < _STRONG:
        colors_2C = torch.tensor([0.0, 1.0])[:, None].expand(2, 3)
    rows_P1 = torch.arange(tall)[:, None] // cell
    columns_1P = torch.arange(wide)[None, :] // cell
    if kind == "noise":
        cells_C = torch.rand(1, 3, -(-tall // cell), -(-wide // cell), generator=generator)
        grown = F.interpolate(cells_C, scale_factor=cell, mode="nearest")
        pattern_CPP = grown[0, :, :tall, :wide]
    else:
        which_PP = {
            "flat": torch.zeros(tall, wide),
            "checker": (rows_P1 + columns_1P) % 2,
            "stripes": (rows_P1 if _below(2, generator) else columns_1P) % 2,
        }[kind].expand(tall, wide)
        pattern_CPP = torch.where(which_PP.bool(), colors_2C[1, :, None, None],
                                  colors_2C[0, :, None, None])  # fmt: skip
    return (pattern_CPP * 255).round().to(torch.uint8)


def _side(size: int, generator: torch.Generator) -> int:
    low, high = SIDES
    share = low + (high - low) * float(torch.rand(1, generator=generator))
    return min(max(round(share * size), 2), size)


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))
