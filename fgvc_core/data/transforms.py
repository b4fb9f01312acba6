"""Picture transforms: the model's square, augmentation, mixing, and views for self-supervision.

torchvision's v2 transforms draw once for a whole batch and take no generator. Applied to each
picture (affine, flip, color jitter) they cost 0.46 ms per picture on tensors and 0.30 ms on
Pillow pictures, at 64 px on one thread; the batched arithmetic below costs 0.25 ms on a batch
of 32, a tenth of the smallest network's step (2.7 ms).

Sources, and where each can harm fine-grained classes:

- Random erasing: Zhong et al. 2020, section 3, https://arxiv.org/abs/1708.04896, for occlusion.
  It may erase the one small mark that distinguishes two classes.
- TrivialAugment: Müller and Hutter 2021, https://arxiv.org/abs/2103.10158, as torchvision's
  ``TrivialAugmentWide``: replaces tuned rotation, zoom and color at about a millisecond per
  picture at 64 px. Solarize and posterize change colors that may be the mark.
- Mixup: Zhang et al. 2018, https://arxiv.org/abs/1710.09412. CutMix: Yun et al. 2019,
  https://arxiv.org/abs/1905.04899. Both are torchvision's and pair neighbors in the (shuffled)
  batch. Differential privacy refuses them, because a mixed picture belongs to two examples.
  Pasting over the part that matters leaves a wrong label.
- Views: Chen et al. 2020, section 3, https://arxiv.org/abs/2002.05709. A backbone learns to
  ignore what views differ in, so the defaults are milder than those for ImageNet.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from fgvc_core.components import AUGMENTATIONS
from fgvc_core.data.settings import AugmentSettings
from fgvc_core.errors import PolicyRefusal

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

# Most pixels of a resized picture before it is cut, in squares of the output size.
_ROOM = 4

# Fewest pixels of a picture that a square shows; float32 cannot resolve less.
_NARROWEST = 1 / 16

# ITU-R BT.601 luma weights, as in Pillow and torchvision.
_LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def placement(
    height: int, width: int, size: int, crop: float = 1.0
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Geometry of :func:`square` for a picture of a given size.

    Returns:
        (width, height) of the resized picture, and (left, top) of the square in it, in pixels.
    """
    scale = round(size / crop) / min(height, width)
    target = (max(round(width * scale), size), max(round(height * scale), size))
    return target, ((target[0] - size) // 2, (target[1] - size) // 2)


def square(
    picture_HWC: NDArray[np.uint8], size: int, crop: float = 1.0, interpolation: str = "bilinear"
) -> NDArray[np.uint8]:
    """Center square of a picture.

    The whole picture is resized and then cut, unless that takes more pixels than the picture has
    and more than four squares. Of a long thin picture only the middle is resized: 30,000 x 1
    pixels would become 30,000 x ``size`` times ``size``. Both ways agree within two levels of
    255: Pillow stores corners as float32, which moves a value by about 0.001 level, and rounds
    to whole levels after each axis, so that a value near a half can round differently twice.

    Args:
        picture_HWC: uint8 (height, width, 3).
        size: Side of the result, in pixels.
        crop: The short side is first resized to ``size / crop`` pixels; above 0 to 1.
        interpolation: ``bilinear`` or ``bicubic``, both with antialiasing.

    Returns:
        uint8 (size, size, 3).
    """
    height, width = picture_HWC.shape[:2]
    if (height, width) == (size, size) and crop == 1.0:
        return picture_HWC
    target, (left, top) = placement(height, width, size, crop)
    image = Image.fromarray(picture_HWC)
    if target[0] * target[1] <= max(_ROOM * size * size, height * width):
        resized = image.resize(target, _FILTERS[interpolation])
        return np.asarray(resized.crop((left, top, left + size, top + size)))
    # Horizontal first, like Pillow: bicubic overshoot is clipped between the two axes.
    for axis in (0, 1):
        image = _middle(image, axis, target[axis], (left, top)[axis], size, interpolation)
    return np.asarray(image)


def _middle(
    image: Image.Image, axis: int, target: int, start: int, size: int, interpolation: str
) -> Image.Image:
    """Pixels ``start`` to ``start + size`` of one axis that is resized to ``target`` pixels."""
    length = image.size[axis]
    step = length / target
    low, high = start * step, (start + size) * step
    if high - low < _NARROWEST:
        low = min(max((low + high - _NARROWEST) / 2, 0.0), length - _NARROWEST)
        high = low + _NARROWEST
    # The filter's support is two pixels of the picture or the result, whichever is larger.
    # Pillow stores corners as float32: cropping first keeps them small, hence precise.
    reach = math.ceil(2 * max(step, 1.0)) + 1
    first, last = max(math.floor(low) - reach, 0), min(math.ceil(high) + reach, length)
    shape, part, region = list(image.size), [0, 0, *image.size], [0.0, 0.0, *map(float, image.size)]
    shape[axis] = size
    part[axis], part[axis + 2] = first, last
    region[axis], region[axis + 2] = low - first, high - first
    box = (region[0], region[1], region[2], region[3])
    near = image.crop((part[0], part[1], part[2], part[3]))
    return near.resize((shape[0], shape[1]), _FILTERS[interpolation], box=box)


class Augment:
    """Random rotation, zoom, flip and color, drawn separately for each picture."""

    def __init__(self, settings: AugmentSettings) -> None:
        self._settings = settings
        names = ["trivial"] if settings.trivial else []
        self._first = [_view(name, settings) for name in names]
        names = (["erasing"] if settings.erasing else []) + list(settings.tables())
        self._last = [_view(name, settings) for name in names]

    def __call__(self, images_NCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Augment uint8 (N, 3, S, S); equal generators give equal views."""
        if not len(images_NCHW):
            return images_NCHW
        for view in self._first:
            images_NCHW = view(images_NCHW, generator)
        moved_NCHW = self._move(images_NCHW.float(), generator)
        varied_NCHW = self._colour(moved_NCHW, generator).clamp_(0, 255).round_().to(torch.uint8)
        for view in self._last:
            varied_NCHW = view(varied_NCHW, generator)
        return varied_NCHW

    def flips(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of N pictures are mirrored, across and down: bool (N,) each.

        Draws what a call draws, so that mirroring alone can be done elsewhere, on the same draws.
        """
        _, _, across_N, down_N = self._moves(count, generator)
        _between(-1, 1, 3 * count, generator)
        return across_N, down_N

    def _moves(
        self, count: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Angles (radians), zooms, and which are mirrored across and down, of N pictures each."""
        settings = self._settings
        angle_N = _between(-1, 1, count, generator) * math.radians(settings.rotation)
        zoom_N = 1 + _between(-1, 1, count, generator) * settings.zoom
        across_N = (torch.rand(count, generator=generator) < 0.5) & settings.flip
        down_N = torch.zeros(count, dtype=torch.bool)
        if settings.flip_vertical:
            # Drawn only if set: other recipes keep their views.
            down_N = torch.rand(count, generator=generator) < 0.5
        return angle_N, zoom_N, across_N, down_N

    def _move(self, images_NCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        settings, count = self._settings, len(images_NCHW)
        angle_N, zoom_N, across_N, down_N = self._moves(count, generator)
        if settings.flip_vertical:
            images_NCHW = torch.where(down_N.view(-1, 1, 1, 1), images_NCHW.flip(-2), images_NCHW)
        if not (settings.rotation or settings.zoom or settings.flip):
            return images_NCHW
        sign_N = torch.where(across_N, -1.0, 1.0)
        theta_N23 = torch.zeros(count, 2, 3)
        # From output to input coordinates, so zooming in samples a smaller square.
        theta_N23[:, 0, 0] = torch.cos(angle_N) / zoom_N * sign_N
        theta_N23[:, 0, 1] = -torch.sin(angle_N) / zoom_N
        theta_N23[:, 1, 0] = torch.sin(angle_N) / zoom_N * sign_N
        theta_N23[:, 1, 1] = torch.cos(angle_N) / zoom_N
        grid_NHW2 = F.affine_grid(theta_N23, list(images_NCHW.shape), align_corners=False)
        return F.grid_sample(images_NCHW, grid_NHW2, padding_mode="reflection", align_corners=False)

    def _colour(self, images_NCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        strength, count = self._settings.color, len(images_NCHW)
        factors_3N111 = 1 + strength * _between(-1, 1, 3 * count, generator).view(3, -1, 1, 1, 1)
        if not strength:
            return images_NCHW
        bright_N111, contrast_N111, colour_N111 = factors_3N111
        images_NCHW = images_NCHW * bright_N111
        grey_N1HW = (images_NCHW * _LUMA).sum(dim=1, keepdim=True)
        # Saturation blends with gray, contrast with the mean gray: one sum for both.
        mean_N111 = grey_N1HW.mean(dim=(2, 3), keepdim=True)
        images_NCHW = grey_N1HW + (images_NCHW - grey_N1HW) * colour_N111
        return mean_N111 + (images_NCHW - mean_N111) * contrast_N111


View = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""Maps uint8 (N, 3, S, S) to the same shape; equal generators give equal views."""


def _view(name: str, settings: AugmentSettings) -> View:
    component = AUGMENTATIONS.get(name)
    made: View = component.make(settings.settings_of(component))
    return made


@AUGMENTATIONS.register("trivial")
def _trivial(settings: AugmentSettings) -> View:
    return trivial


@AUGMENTATIONS.register("erasing")
def _erasing(settings: AugmentSettings) -> View:
    return lambda images_NCHW, generator: erase(images_NCHW, settings.erasing, generator)


def augmentation_refusal(settings: AugmentSettings) -> PolicyRefusal | None:
    """Why differential privacy does not allow ``[augment]``; None if it does."""
    coupled = ["mix"] if settings.mix != "none" else []
    for name in settings.tables():
        if getattr(_view(name, settings), "couples_examples", False):
            coupled.append(name)
    if not coupled:
        return None
    return PolicyRefusal(
        f"augment.{coupled[0]} is refused under [privacy].",
        why="It couples the examples of a batch: no single one's part can be bounded.",
        remedy="Leave it out.",
    )


def _between(low: float, high: float, count: int, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


AREA = (0.02, 0.2)
"""Share of the picture that is erased; the paper's 0.4 is too much for small marks."""

ASPECT = (0.3, 3.3)


def erase(images_NCHW: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Replace a random rectangle by noise in about a share of the pictures.

    Args:
        images_NCHW: uint8 (N, C, H, W).
        share: Probability for each picture, 0 to 1.
        generator: The only source of randomness.

    Returns:
        A copy of the same shape and type.
    """
    count, channels, height, width = images_NCHW.shape
    drawn_5N = torch.rand(5, count, generator=generator)
    area_N = (AREA[0] + (AREA[1] - AREA[0]) * drawn_5N[0]) * height * width
    low, high = (torch.tensor(aspect).log() for aspect in ASPECT)
    aspect_N = (low + (high - low) * drawn_5N[1]).exp()
    tall_N = (area_N * aspect_N).sqrt().round().clamp(1, height)
    wide_N = (area_N / aspect_N).sqrt().round().clamp(1, width)
    top_N = (drawn_5N[2] * (height - tall_N + 1)).floor()
    left_N = (drawn_5N[3] * (width - wide_N + 1)).floor()
    rows_NH = torch.arange(height) - top_N[:, None]
    columns_NW = torch.arange(width) - left_N[:, None]
    inside_NH = (rows_NH >= 0) & (rows_NH < tall_N[:, None])
    inside_NW = (columns_NW >= 0) & (columns_NW < wide_N[:, None])
    chosen_N = drawn_5N[4] < share
    mask_N1HW = (inside_NH[:, :, None] & inside_NW[:, None, :] & chosen_N[:, None, None])[:, None]
    noise_NCHW = torch.randint(
        0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator
    )
    return torch.where(mask_N1HW, noise_NCHW, images_NCHW)


def trivial(images_NCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Apply one random operation per picture of uint8 (N, 3, S, S), determined by the generator."""
    # Imported lazily, as below: torchvision takes two seconds to load, and a recipe is also read,
    # with what it says of augmentation, by commands that touch no picture.
    from torchvision.transforms import v2

    change = v2.TrivialAugmentWide()
    with torch.random.fork_rng(devices=[]):
        # torchvision draws from the global generator and takes no other.
        torch.default_generator.manual_seed(_seed(generator))
        return torch.stack([change(image_CHW) for image_CHW in images_NCHW])


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (1,), generator=generator))


Mix = Literal["none", "mixup", "cutmix", "both"]


class Mixing:
    """Mixes whole batches with mixup or CutMix.

    Args:
        kind: ``both`` draws one of the two for each batch.
        alpha: Both parameters of the Beta distribution of the mixing ratio.
        share: Probability that a batch is mixed, 0 to 1.
        num_classes: K.
    """

    def __init__(self, kind: Mix, alpha: float, share: float, num_classes: int) -> None:
        self._share = share
        names = {"mixup": ("MixUp",), "cutmix": ("CutMix",), "both": ("MixUp", "CutMix")}
        self._ways: list[Callable[..., tuple[torch.Tensor, torch.Tensor]]] = []
        for name in names.get(kind, ()):
            from torchvision.transforms import v2

            self._ways.append(getattr(v2, name)(alpha=alpha, num_classes=num_classes))

    def __call__(
        self, images_NCHW: torch.Tensor, labels_N: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch, or return it unchanged.

        Args:
            images_NCHW: uint8 (N, 3, S, S).
            labels_N: int64 (N,).
            generator: The only source of randomness.

        Returns:
            Pictures (float if mixed), and labels (N,) or class shares (N, K).
        """
        if not self._ways or len(labels_N) < 2:
            return images_NCHW, labels_N
        drawn_2 = torch.rand(2, generator=generator)
        seed = int(torch.randint(2**62, (1,), generator=generator))
        if drawn_2[0] >= self._share:
            return images_NCHW, labels_N
        way = self._ways[int(drawn_2[1] * len(self._ways))]
        with torch.random.fork_rng(devices=[]):
            # torchvision draws from the global generator and takes no other.
            torch.default_generator.manual_seed(seed)
            mixed_NCHW, shares_NK = way(images_NCHW.float(), labels_N)
        return mixed_NCHW, shares_NK.float()


_ASPECT = math.log(4 / 3)


class RandomViews:
    """Random crop, mirror, rotation, color and gray, drawn separately for each picture.

    Args:
        crop: Smallest share of the area that a view shows, above 0 to 1.
        rotation: Largest rotation either way, in degrees.
        color: Largest relative change of brightness, contrast and saturation, 0 to 1.
        grey: Share of views without color, 0 to 1.
    """

    def __init__(self, crop: float, rotation: float, color: float, grey: float) -> None:
        self._crop = crop
        self._grey = grey
        self._vary = Augment(AugmentSettings(rotation=rotation, zoom=0.0, flip=True, color=color))

    def __call__(self, images_NCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One random view per picture of uint8 (N, 3, S, S); equal generators give equal views."""
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
        # In affine_grid's coordinates a picture extends from -1 to 1.
        theta_N23[:, 0, 0], theta_N23[:, 1, 1] = wide_N, tall_N
        theta_N23[:, 0, 2] = (1 - wide_N) * (2 * drawn_4N[2] - 1)
        theta_N23[:, 1, 2] = (1 - tall_N) * (2 * drawn_4N[3] - 1)
        grid_NHW2 = F.affine_grid(theta_N23, list(images_NCHW.shape), align_corners=False)
        cut_NCHW = F.grid_sample(
            images_NCHW.float(), grid_NHW2, padding_mode="reflection", align_corners=False
        )
        return cut_NCHW.round_().clamp_(0, 255).to(torch.uint8)
