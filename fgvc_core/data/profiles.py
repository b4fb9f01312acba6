"""Embedded color profiles (ICC.1): samples become sRGB, the color space that models are trained in.

A phone writes Display P3, a camera Adobe RGB, a scanner its own profile; read as if they were sRGB,
colors come out dull or lurid by tens of levels. The transform is Little CMS's with the perceptual
intent, as browsers do. A profile that is sRGB up to rounding changes nothing, and one that is
damaged, of another kind of color than the picture, or absurdly large counts as none: the pixels are
whole.
"""

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, features

MAX_PROFILE_BYTES = 4 * 1024**2
"""Largest profile that is read; those of printing presses have one or two megabytes."""

SAME = 2
"""A profile that moves no sample of a grid by more than this is sRGB."""

_INTO = {"L": "L", "LA": "L", "RGB": "RGB", "RGBA": "RGB", "RGBX": "RGB", "P": "RGB", "PA": "RGB",
         "YCbCr": "RGB", "CMYK": "CMYK"}  # fmt: skip
"""Mode of an image -> mode in which its profile counts."""

Transform = Any
"""An ``ImageCms.ImageCmsTransform``, whose ``input_mode`` is the mode it takes."""


def transform_of(image: Image.Image) -> Transform | None:
    """Transform from an image's samples to sRGB; None if there is nothing to do."""
    profile = image.info.get("icc_profile")
    mode = _INTO.get(image.mode)
    if not isinstance(profile, bytes) or mode is None or not profile:
        return None
    return _made(profile, mode) if len(profile) <= MAX_PROFILE_BYTES else None


@lru_cache(maxsize=32)
def _made(profile: bytes, mode: str) -> Transform | None:
    if not features.check("littlecms2"):
        return None
    from PIL import ImageCms

    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        made = ImageCms.buildTransform(own, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        return None if mode == "RGB" and _is_srgb(made) else made
    except Exception:
        # Little CMS and Pillow let errors of several types through.
        return None


def _is_srgb(transform: Transform) -> bool:
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid_1NC = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    seen_1NC = np.asarray(transform.apply(Image.fromarray(grid_1NC)))
    return int(np.abs(seen_1NC.astype(int) - grid_1NC).max()) <= SAME


def in_srgb(image: Image.Image, transform: Transform) -> Image.Image:
    """An image, or a part of one, as RGB; transparency is left out."""
    source = image if image.mode == transform.input_mode else image.convert(transform.input_mode)
    found: Image.Image = transform.apply(source)
    return found
