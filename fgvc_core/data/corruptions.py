"""Deterministic corruptions of a picture, at five severities each, to measure robustness.

They follow Hendrycks and Dietterich 2019 (https://arxiv.org/abs/1903.12261, section 4.1): common
faults of cameras and files, not of an adversary. Noise and compression are as strong as their
``gaussian_noise`` and ``jpeg_compression``; blur is twice their ``gaussian_blur`` and scales with
the side, so that a picture of 64 pixels is affected like one of 224. None of their files is used:
results are comparable with each other, not with theirs. ``background`` replaces everything outside
the subject's box by another picture's surroundings (Xiao et al. 2020,
https://arxiv.org/abs/2006.09994): accuracy lost there came from the habitat.
"""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from fgvc_core.errors import ConfigurationError, nearest
from fgvc_core.seeds import derive_seed

CORRUPTIONS = ("blur", "noise", "compression", "occlusion", "contrast", "brightness", "background")
"""Names, in the order of tables."""

NEEDS_BOX = ("background",)
"""Corruptions that need the subject's box."""

SEVERITIES = (1, 2, 3, 4, 5)

Box = tuple[float, float, float, float]
"""x, y, width and height as fractions of the picture's width and height."""

# One value per severity.
_BLUR = (2 / 224, 4 / 224, 6 / 224, 8 / 224, 12 / 224)
_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
_QUALITY = (25, 18, 15, 10, 7)
_COVERED = (0.05, 0.10, 0.20, 0.30, 0.40)
_CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
_LIFT = (0.1, 0.2, 0.3, 0.4, 0.5)
_SWAPPED = (0.2, 0.4, 0.6, 0.8, 1.0)

_NARROW = 0.1
_GREY = (128, 128, 128)


def corrupt(
    image: Image.Image,
    name: str,
    severity: int,
    seed: int,
    *,
    box: Box | None = None,
    backdrop: Image.Image | None = None,
) -> Image.Image:
    """Corrupt one picture; equal arguments give equal pixels.

    Args:
        image: RGB, at the model's input size.
        name: One of :data:`CORRUPTIONS`.
        severity: 1 (mild) to 5.
        seed: Seed of the noise and of the occluding square's position. All severities draw the
            same numbers, so that a square grows in place.
        box: The subject's box; only ``background`` needs it.
        backdrop: Another picture's surroundings (see :func:`surroundings`), of any size; only
            ``background`` needs it.

    Returns:
        RGB, of the same size.

    Raises:
        ConfigurationError: for an unknown name or severity, or ``background`` without a box.
    """
    _check(name, severity, box, backdrop)
    image = image.convert("RGB")
    at = severity - 1
    generator = np.random.default_rng(derive_seed(seed, "corruption", name))
    if name == "blur":
        # Pillow's blur approximates by box blurs and does nothing below about half a pixel.
        values_HWC = np.asarray(image, dtype=np.float32)
        spread = _BLUR[at] * min(image.size)
        return _image(gaussian_filter(values_HWC, (spread, spread, 0), mode="reflect"))
    if name == "noise":
        values_HWC = np.asarray(image, dtype=np.float32)
        noise_HWC = generator.standard_normal(values_HWC.shape, dtype=np.float32)
        return _image(values_HWC + 255 * _NOISE[at] * noise_HWC)
    if name == "compression":
        file = io.BytesIO()
        image.save(file, "JPEG", quality=_QUALITY[at])
        return Image.open(file).convert("RGB")
    if name == "occlusion":
        return _covered(image, _COVERED[at], generator)
    if name == "contrast":
        return ImageEnhance.Contrast(image).enhance(_CONTRAST[at])
    if name == "brightness":
        hue, saturation, value = image.convert("HSV").split()
        lifted = value.point(lambda v: min(v + round(255 * _LIFT[at]), 255))
        return Image.merge("HSV", (hue, saturation, lifted)).convert("RGB")
    assert box is not None
    assert backdrop is not None
    return _elsewhere(image, box, backdrop, _SWAPPED[at])


def surroundings(image: Image.Image, box: Box) -> Image.Image:
    """A picture without its subject: the widest strip beside the box, stretched to full size.

    If no strip is at least a tenth of the side wide, it is the picture's mean color.
    """
    width, height = image.size
    left, top, right, bottom = _edges(box, width, height)
    strips = {
        (0, 0, left, height): left / width,
        (right, 0, width, height): (width - right) / width,
        (0, 0, width, top): top / height,
        (0, bottom, width, height): (height - bottom) / height,
    }
    widest = max(strips, key=strips.__getitem__)
    if strips[widest] < _NARROW:
        mean_C = np.asarray(image.convert("RGB"), dtype=np.float64).mean(axis=(0, 1))
        red, green, blue = (round(value) for value in mean_C.tolist())
        return Image.new("RGB", image.size, (red, green, blue))
    return image.convert("RGB").crop(widest).resize(image.size, Image.Resampling.BILINEAR)


def _image(values_HWC: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(values_HWC.round().clip(0, 255).astype(np.uint8))


def _covered(image: Image.Image, share: float, generator: np.random.Generator) -> Image.Image:
    width, height = image.size
    across, down = (round(math.sqrt(share) * side) for side in image.size)
    # The square's relative position is the same at all severities, so that it grows in place.
    x, y = generator.random(2)
    left, top = round(x * (width - across)), round(y * (height - down))
    covered = image.copy()
    covered.paste(_GREY, (left, top, left + across, top + down))
    return covered


def _elsewhere(image: Image.Image, box: Box, backdrop: Image.Image, share: float) -> Image.Image:
    behind = backdrop.convert("RGB").resize(image.size, Image.Resampling.BILINEAR)
    swapped = Image.blend(image, behind, share)
    edges = _edges(box, *image.size)
    swapped.paste(image.crop(edges), edges[:2])
    return swapped


def _edges(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels, clipped to the picture."""
    x, y, wide, high = box
    left, right = (min(max(round(v * width), 0), width) for v in (x, x + wide))
    top, bottom = (min(max(round(v * height), 0), height) for v in (y, y + high))
    return left, top, right, bottom


def _check(name: str, severity: int, box: Box | None, backdrop: Image.Image | None) -> None:
    if name not in CORRUPTIONS:
        raise ConfigurationError(
            f"'{name}' is no corruption.",
            why=f"Known are: {', '.join(CORRUPTIONS)}.",
            remedy=nearest(name, CORRUPTIONS, 1) or "Name one of these.",
        )
    if severity not in SEVERITIES:
        raise ConfigurationError(
            f"Severity {severity} of '{name}' is not 1 to 5.", remedy="Give 1 (mild) to 5."
        )
    if name in NEEDS_BOX and (box is None or backdrop is None):
        raise ConfigurationError(
            f"'{name}' needs the subject's box and another picture's surroundings.",
            why="What is behind the subject can only be swapped where the subject is known.",
            remedy="Leave it out for data without boxes.",
        )
