"""Pictures of more than 8 bits a channel, mapped to 0..255 by a stated rule (``data.depth``).

A camera of 12 bits writes 0 to 4095 into files of 16; a scanner writes 0 to 65535; a detector any
numbers. Nothing in the file says which, so the rule is the recipe's, and a model's pictures are
read by the rule of its training:

- ``scale``: 0 to ``2 ** depth_bits - 1`` becomes 0..255 (a PGM or PPM states its own maximum).
- ``percentile``: the picture's own 0.5th and 99.5th percentile become 0 and 255.
- ``window``: center and width, as in DICOM (PS3.3, C.11.2.1.2).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from fgvc_core.data.reader import GROUND, orientation_of
from fgvc_core.errors import DataError

LOW, HIGH = 0.5, 99.5
"""Percentiles that become 0 and 255."""

_SAMPLED = 1_000_000
_ROWS = 256

Samples = NDArray[Any]
"""(H, W, C): gray, gray and alpha, RGB, or RGBA; unsigned 16-bit or float32."""


@dataclass(frozen=True)
class Depth:
    """The rule.

    Attributes:
        rule: ``scale``, ``percentile`` or ``window``.
        bits: For ``scale``: bits that hold values, 9 to 16.
        window: For ``window``: center and width, in the file's units.
    """

    rule: Literal["scale", "percentile", "window"]
    bits: int = 16
    window: tuple[float, float] = (32768.0, 65536.0)


def too_deep(path: Path, how: str) -> DataError:
    """Error for a picture of more than 8 bits a channel without a rule.

    Args:
        path: The picture.
        how: How its samples are stored.
    """
    return DataError(
        f"The picture '{path}' has more than 8 bits a channel ('{how}'), and data.depth states no "
        "rule for that.",
        why="How its values map to 0..255 is a choice that changes what a model sees.",
        remedy="Say how with data.depth (scale, percentile or window), or convert it to 8 bits "
        "with the window that your field uses.",
    )


def read_deep(path: Path, image: ImageFile.ImageFile, depth: Depth) -> NDArray[np.uint8]:
    """Pixels of an opened deep picture, uint8 (height, width, 3), upright and on white.

    Args:
        path: The file.
        image: The opened image, not yet loaded.
        depth: The rule.

    Raises:
        ValueError: if the format's samples cannot be read in full depth.
        Exception: of any type, as decoders do, if the pixels are damaged.
    """
    samples_HWC, most = _samples(path, image, depth)
    low, high = _range(samples_HWC, most, depth)
    turn = orientation_of(image)
    height, width = samples_HWC.shape[:2]
    picture_HWC = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, _ROWS):
        part_HWC = samples_HWC[top : top + _ROWS].astype(np.float32)
        clear = part_HWC.shape[2] in (2, 4)
        colour_HWC = part_HWC[..., :-1] if clear else part_HWC
        scaled_HWC = (colour_HWC - low) * (255.0 / max(high - low, 1e-12))
        scaled_HWC = np.nan_to_num(scaled_HWC, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255)
        if clear:
            alpha_HW1 = part_HWC[..., -1:] / 65535.0
            scaled_HWC = scaled_HWC * alpha_HW1 + GROUND * (1 - alpha_HW1)
        picture_HWC[top : top + _ROWS] = scaled_HWC.round().astype(np.uint8)
    return np.ascontiguousarray(_upright(picture_HWC, turn))


def _samples(path: Path, image: ImageFile.ImageFile, depth: Depth) -> tuple[Samples, float]:
    """Samples in full depth, and the largest value that they may have under ``scale``."""
    most = float(2**depth.bits - 1)
    if image.mode.startswith(("I", "F")):
        stated = image.format == "PPM"
        image.load()
        # Pillow maps a PGM's own maximum to 65535.
        return np.asarray(image)[..., None], 65535.0 if stated else most
    tiles: list[Any] = list(image.tile)
    codec, _, offset, arguments = tiles[0]
    if image.format == "PNG":
        return _png_samples(path, image), most
    if codec == "ppm":
        count = image.width * image.height * 3
        with path.open("rb") as file:
            file.seek(offset)
            values = np.frombuffer(file.read(2 * count), dtype=">u2")
        return values.reshape(image.height, image.width, 3), float(arguments[-1])
    if image.format == "TIFF" and codec == "raw" and image.mode == "RGB":
        order = ">u2" if "16B" in str(arguments[0]) else "<u2"
        strips = []
        with path.open("rb") as file:
            for _, (left, top, right, bottom), at, _ in tiles:
                file.seek(at)
                size = (right - left) * (bottom - top) * 3
                strips.append(np.frombuffer(file.read(2 * size), dtype=order))
        whole = np.concatenate(strips)
        return whole.reshape(image.height, image.width, 3), most
    raise ValueError(
        "its samples of more than 8 bits cannot be read in full (convert it to PNG, or to TIFF "
        "without compression)"
    )


def _png_samples(path: Path, image: ImageFile.ImageFile) -> Samples:
    """Samples of a 16-bit PNG in color or with transparency, which Pillow reads at 8 bits only.

    Read in the other byte order, its decoder gives the low bytes; gray with alpha has as many bytes
    a pixel as 8-bit RGBA, and is read as such.
    """
    with Image.open(path, formats=("PNG",)) as whole:
        # A stream without its end would otherwise pass, its checksums unread.
        whole.verify()
    tile = image.tile[0]
    stored = str(tile.args)
    if stored == "LA;16B":
        image.tile = [tile._replace(args="RGBA")]
        image.load()
        bytes_HWC = np.asarray(image).astype(np.uint16)
        return bytes_HWC[..., 0::2] << 8 | bytes_HWC[..., 1::2]
    image.load()
    with Image.open(path, formats=("PNG",)) as again:
        again.tile = [again.tile[0]._replace(args=stored.replace(";16B", ";16L"))]
        again.load()
        return np.asarray(image).astype(np.uint16) << 8 | np.asarray(again)


def _range(samples_HWC: Samples, most: float, depth: Depth) -> tuple[float, float]:
    if depth.rule == "scale":
        return 0.0, most
    if depth.rule == "window":
        center, width = depth.window
        return center - width / 2, center + width / 2
    channels = samples_HWC.shape[2]
    colour = samples_HWC[..., : channels - 1 if channels in (2, 4) else channels].reshape(-1)
    some = colour[:: max(len(colour) // _SAMPLED, 1)].astype(np.float64)
    some = some[np.isfinite(some)]
    if not len(some):
        return 0.0, 1.0
    low, high = np.percentile(some, (LOW, HIGH))
    return float(low), float(high)


def _upright(picture_HWC: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The picture turned as its EXIF orientation says."""
    if orientation in (5, 6, 7, 8):
        picture_HWC = picture_HWC.swapaxes(0, 1)
    across = orientation in (2, 3, 6, 7)
    down = orientation in (3, 4, 7, 8)
    return picture_HWC[:: -1 if down else 1, :: -1 if across else 1]
