"""Views of a picture: the model's square, augmentation, mixing, and views without labels.

Views of a picture: the square that a model sees, and random variations of it in training.

torchvision's v2 transforms draw once for a whole batch and take no generator. Called for
each picture (affine, flip, colour jitter) they cost 0.46 ms a picture on tensors and 0.30 ms
on Pillow pictures, at 64 px on one thread; the arithmetic below, on a batch of 32 at once,
costs 0.25 ms, a tenth of the smallest network's whole step (2.7 ms).

Random erasing: a rectangle of a training picture becomes noise.

Zhong et al. 2020, "Random Erasing Data Augmentation", section 3,
https://arxiv.org/abs/1708.04896: it stands for occlusion. torchvision's own draws one rectangle
for a whole batch. A warning: where classes differ in one small mark, the mark is what is erased.

TrivialAugment: one random operation at a random strength for each picture.

Müller and Hutter 2021, https://arxiv.org/abs/2103.10158, torchvision's ``TrivialAugmentWide``. It
takes the place of tuned rotation, zoom and colour. Cost: about a millisecond a picture at 64 px.
A warning: solarising and posterising change colours that may be the mark itself.

Mixing two pictures and their labels.

Mixup: Zhang et al. 2018, https://arxiv.org/abs/1710.09412. CutMix: Yun et al. 2019,
https://arxiv.org/abs/1905.04899. Both torchvision's, each picture with its neighbour in the
(shuffled) batch. A mixed picture belongs to two examples at once: under differential privacy, where
one example's part must be bounded, mixing is refused. A warning: for classes that differ in
one small part, pasting over that part leaves a wrong label; few epochs do not pay for it.

Two random views of one picture, for learning without labels.

Random cropping and colour are what such methods live on (Chen et al. 2020, section 3,
https://arxiv.org/abs/2002.05709). A warning for fine-grained classes: a backbone learns not to
see what views differ in. Strong colour hides the marks that are colours, small crops cut off the
part that tells, so the defaults are milder than those for ImageNet.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import v2

from fgvc_core.components import AUGMENTATIONS
from fgvc_core.data.settings import AugmentSettings
from fgvc_core.errors import PolicyRefusal

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

# Squares' worth of pixels that a resized picture may have before it is cut.
_ROOM = 4

# Pixels of a picture that a square shows at least: what float32 still tells apart.
_NARROWEST = 1 / 16

# ITU-R BT.601 luma, as Pillow and torchvision use it.
_LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def placement(
    height: int, width: int, size: int, crop: float = 1.0
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a picture lies when :func:`square` looks at it.

    Returns:
        (width, height) that it is resized to, and (left, top) of the square cut out of that,
        all in pixels.
    """
    scale = round(size / crop) / min(height, width)
    target = (max(round(width * scale), size), max(round(height * scale), size))
    return target, ((target[0] - size) // 2, (target[1] - size) // 2)


def square(
    picture_HWC: NDArray[np.uint8], size: int, crop: float = 1.0, interpolation: str = "bilinear"
) -> NDArray[np.uint8]:
    """The centre square of a picture.

    The whole picture is resized and then cut, unless that takes more pixels than the picture has
    and more than four squares. Of a long thin picture only the middle is resized: 30,000 x 1
    pixels would become 30,000 x ``size`` times ``size``. Both ways agree to two levels of 255:
    Pillow keeps corners as float32, which moves a value by about 0.001 level, and it rounds to
    whole levels after each direction, so that a value near a half can turn over twice.

    Args:
        picture_HWC: uint8 (height, width, 3).
        size: Side of the result, in pixels.
        crop: The short side is resized to ``size / crop`` first, 0 to 1.
        interpolation: ``bilinear`` or ``bicubic``, both with anti-aliasing.

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
    # Across first, as Pillow itself does: bicubic overshoots are cut off between the two.
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
    # A filter reaches two pixels, of the picture or of the result, whichever are larger. Pillow
    # keeps corners as float32, so that they count from a whole pixel near by.
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
    """Random rotation, zoom, flip and colour, drawn for each picture on its own.

    Args:
        settings: How far each may go.
    """

    def __init__(self, settings: AugmentSettings) -> None:
        self._settings = settings
        names = ["trivial"] if settings.trivial else []
        self._first = [_view(name, settings) for name in names]
        names = (["erasing"] if settings.erasing else []) + list(settings.tables())
        self._last = [_view(name, settings) for name in names]

    def __call__(self, images_NCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """uint8 (N, 3, S, S) to the same; equal generators give equal views."""
        if not len(images_NCHW):
            return images_NCHW
        for view in self._first:
            images_NCHW = view(images_NCHW, generator)
        moved_NCHW = self._move(images_NCHW.float(), generator)
        varied_NCHW = self._colour(moved_NCHW, generator).clamp_(0, 255).round_().to(torch.uint8)
        for view in self._last:
            varied_NCHW = view(varied_NCHW, generator)
        return varied_NCHW

    def _move(self, images_NCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        settings, count = self._settings, len(images_NCHW)
        angle_N = _between(-1, 1, count, generator) * math.radians(settings.rotation)
        zoom_N = 1 + _between(-1, 1, count, generator) * settings.zoom
        mirrored_N = torch.rand(count, generator=generator) < 0.5
        if not (settings.rotation or settings.zoom or settings.flip):
            return images_NCHW
        sign_N = torch.where(mirrored_N & settings.flip, -1.0, 1.0)
        theta_N23 = torch.zeros(count, 2, 3)
        # Output coordinates to input coordinates: a zoom in samples a smaller square.
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
        # Saturation blends with grey, contrast with the mean grey: one sum for both.
        mean_N111 = grey_N1HW.mean(dim=(2, 3), keepdim=True)
        images_NCHW = grey_N1HW + (images_NCHW - grey_N1HW) * colour_N111
        return mean_N111 + (images_NCHW - mean_N111) * contrast_N111


View = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""uint8 (N, 3, S, S) to the same; equal generators give equal views."""


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
    """Why differential privacy cannot bound what ``[augment]`` makes; None if it can."""
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
"""Share of the picture that is erased; the paper goes to 0.4, too much for small marks."""

ASPECT = (0.3, 3.3)


def erase(images_NCHW: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Erase one rectangle each in about a share of the pictures.

    Args:
        images_NCHW: uint8 (N, C, H, W).
        share: Probability for each picture, 0 to 1.
        generator: The only source of what is drawn.

    Returns:
        The same shape and type, the caller's own.
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
    """uint8 (N, 3, S, S) to the same; equal generators give equal views."""
    change = v2.TrivialAugmentWide()
    with torch.random.fork_rng(devices=[]):
        # torchvision draws from the global generator and takes no other.
        torch.default_generator.manual_seed(_seed(generator))
        return torch.stack([change(image_CHW) for image_CHW in images_NCHW])


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (1,), generator=generator))


Mix = Literal["none", "mixup", "cutmix", "both"]


class Mixing:
    """Mixes whole batches.

    Args:
        kind: ``both`` draws one of the two for each batch.
        alpha: Of the Beta distribution that the share comes from.
        share: Probability that a batch is mixed, 0 to 1.
        num_classes: K.
    """

    def __init__(self, kind: Mix, alpha: float, share: float, num_classes: int) -> None:
        self._share = share
        kinds = {"mixup": (v2.MixUp,), "cutmix": (v2.CutMix,), "both": (v2.MixUp, v2.CutMix)}
        self._ways = [way(alpha=alpha, num_classes=num_classes) for way in kinds.get(kind, ())]

    def __call__(
        self, images_NCHW: torch.Tensor, labels_N: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures and labels, mixed or as they are.

        Args:
            images_NCHW: uint8 (N, 3, S, S).
            labels_N: int64 (N,).
            generator: The only source of what is drawn.

        Returns:
            Pictures (float where mixed), and labels (N,) or shares of the classes (N, K).
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
