"""The one meaning of a picture file: from an opened image to upright RGB on a stated ground.

Every command reads pictures this way; the exported sample (``export/read_picture.py``) and the
browser page follow the same rules, and tests compare them.

- **Orientation**: turned as its EXIF tag 274 says (CIPA DC-008, section 4.6.4), if that is one
  number from 1 to 8. A damaged EXIF block counts as none; the rest of it is not looked at.
- **Transparency**: laid on white. What lies under full transparency never shows.
- **Depth**: 8 bits for each channel. Deeper files are refused, since how their values map to
  0..255 changes what a model sees, unless ``data.depth`` says how.
- **Color**: gray, palette, CMYK, YCbCr and LAB become RGB. An embedded profile is applied
  (``profiles.py``); without one, samples are taken as sRGB. Deep pictures have none applied.
- **Frames**: one of a file that holds several: the first, unless ``data.frame`` says which. Of a
  phone's multi-picture JPEG always the first: the others are previews and depth maps.
"""

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fgvc_core.data.profiles import Transform, in_srgb, transform_of

# Complaints about metadata, one line of standard error for each damaged picture.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")

GROUND = 255
"""Value of each channel of the ground under transparency: white."""

Frame = Literal["first", "middle", "last"]
"""Which frame of an animation, a stack or a file of several pages is read."""

_IN_ORDER = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")
"""Formats whose frames are pictures of one series."""

ORIENTATION = 0x0112
"""EXIF tag of the orientation."""

# Pixels converted to RGB at once, which bounds the extra memory to a few megabytes.
_STRIP_PIXELS = 1 << 20

_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 if there is none or the block is damaged."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:
        # Pillow's parser lets errors of many types through; the pixels are whole.
        return 1
    if isinstance(found, tuple) and found:
        found = found[0]
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def turned(places_N2: NDArray[np.floating[Any]], orientation: int) -> NDArray[np.floating[Any]]:
    """Places (x, y) in a stored picture, as fractions, where they are in the upright picture.

    Args:
        places_N2: (N, 2), 0 to 1.
        orientation: 1 to 8, of the stored picture.
    """
    x, y = places_N2[:, 0], places_N2[:, 1]
    upright = {
        1: (x, y),
        2: (1 - x, y),
        3: (1 - x, 1 - y),
        4: (x, 1 - y),
        5: (y, x),
        6: (1 - y, x),
        7: (1 - y, 1 - x),
        8: (y, 1 - x),
    }
    return np.stack(upright[orientation], axis=1)


def turned_boxes(boxes_N4: NDArray[np.floating[Any]], orientation: int) -> NDArray[np.float32]:
    """Boxes (x, y, width, height) as fractions, where they are in the upright picture."""
    one = turned(boxes_N4[:, :2], orientation)
    two = turned(boxes_N4[:, :2] + boxes_N4[:, 2:], orientation)
    low = np.minimum(one, two)
    return np.hstack([low, np.maximum(one, two) - low]).astype(np.float32)


def frame_place(frame: Frame, count: int) -> int:
    """Place of the frame to read among ``count``, from 0.

    >>> [frame_place(frame, 5) for frame in ("first", "middle", "last")]
    [0, 2, 4]
    """
    return {"first": 0, "middle": (count - 1) // 2, "last": count - 1}[frame]


def to_frame(image: Image.Image, frame: Frame) -> None:
    """Move an opened image to the frame that is to be read.

    Raises:
        Exception: of any type, as decoders do, if the file is damaged before that frame.
    """
    if frame != "first" and image.format in _IN_ORDER:
        image.seek(frame_place(frame, getattr(image, "n_frames", 1)))


def deeper_than_8_bits(image: Image.Image) -> str:
    """How a file's samples are stored if they have more than 8 bits; empty if not.

    Looked up before the pixels are loaded: Pillow opens 16-bit RGB in mode ``RGB`` and keeps the
    high byte of each sample alone, and only its decoder's arguments say so.
    """
    if image.mode.startswith(("I", "F")):
        return image.mode
    for tile in getattr(image, "tile", None) or ():
        codec, arguments = tile[0], tile[3]
        words = arguments if isinstance(arguments, tuple) else (arguments,)
        for word in words:
            # "BGR;16" is 5, 6 and 5 bits.
            if isinstance(word, str) and ";16" in word and not word.startswith("BGR"):
                return word
        if codec.startswith("ppm") and isinstance(words[-1], int) and words[-1] > 255:
            return f"{image.mode}, up to {words[-1]}"
    return ""


def as_rgb(image: Image.Image, *, banner: int = 0) -> NDArray[np.uint8]:
    """Pixels of an opened image of 8 bits a channel, uint8 (height, width, 3), upright.

    Args:
        image: The image; it is loaded.
        banner: Rows to cut off its stored bottom; at least one row stays.

    Raises:
        Exception: of any type, as decoders do, if the pixels are damaged.
    """
    image.load()
    # After loading: TIFF is turned by Pillow on loading, and PNG may hold its EXIF at the end.
    turn = _TURNED.get(orientation_of(image))
    if banner:
        image = image.crop((0, 0, image.width, max(image.height - banner, 1)))
    if turn is not None:
        image = image.transpose(turn)
    width, height = image.size
    clear = image.has_transparency_data
    transform = transform_of(image)
    picture_HWC = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(_STRIP_PIXELS // width, 1)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        picture_HWC[top : top + rows] = _converted(strip, transform, clear)
    return picture_HWC


def _converted(strip: Image.Image, transform: Transform | None, clear: bool) -> NDArray[np.uint8]:
    """RGB values of a part of an image; transparency is laid on a ground that is white in sRGB."""
    if not clear:
        return np.asarray(strip.convert("RGB") if transform is None else in_srgb(strip, transform))
    rgba = strip.convert("RGBA")
    if transform is not None:
        colored = in_srgb(strip if strip.mode == "LA" else rgba, transform)
        colored.putalpha(rgba.getchannel("A"))
        rgba = colored
    return _on_ground(np.asarray(rgba))


def _on_ground(rgba_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    alpha_HW1 = rgba_HWC[..., 3:].astype(np.uint16)
    mixed_HWC = rgba_HWC[..., :3] * alpha_HW1 + GROUND * (255 - alpha_HW1)
    return ((mixed_HWC + 127) // 255).astype(np.uint8)
