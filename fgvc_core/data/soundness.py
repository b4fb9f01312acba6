"""Checks of a file before it is opened or decoded, because data trees are not trusted.

A tree may come from an archive of another party: a link can lead to any file of the
machine, a few kilobytes can unpack to gigabytes, and a "picture" may be a pipe that never ends.
"""

import os
import stat
from importlib.util import find_spec
from pathlib import Path

from PIL import features

from fgvc_core.errors import DataError

MAX_PIXELS = 64_000_000
"""Most pixels of a picture.

Decoding one takes at most 1.03 GB: measured with Pillow 13 on black pictures, above an idle
process, in bytes per pixel: WebP 16, progressive CMYK JPEG 12, rotated PNG and TIFF of one
strip 8, all others 7.4. ``passing.py`` tests whether that much memory is available.
"""

MAX_SIDE = 30_000
"""Longest side of a picture, in pixels."""

MAX_FILE_BYTES = 512 * 1024**2
"""Largest file that is read as one picture."""

MAX_LIST_BYTES = 1024**3
"""Largest manifest or other list that is read: about ten million lines."""

FORMATS = (
    *(("AVIF",) if features.check("avif") else ()),
    "BMP",
    "GIF",
    "JPEG",
    "PNG",
    "PPM",
    "TIFF",
    "WEBP",
    *(("HEIF",) if find_spec("pillow_heif") is not None else ()),
)
"""The only decoders that may be used, whatever a file's extension. HEIF, the format of phones, is
read where the extra ``formats`` is installed, that is where somebody has chosen its decoder."""

if "HEIF" in FORMATS:
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)


def refuse_unsound_list(root: Path, path: Path) -> None:
    """Refuse a manifest or other list outside the tree, not a regular file, or too large.

    Args:
        root: The tree's root.
        path: The list.

    Raises:
        DataError: naming the list and the fault.
        FileNotFoundError: if it does not exist.
        OSError: if its folder cannot be read.
    """
    _refuse_unsound(os.path.realpath(root), path, "list", MAX_LIST_BYTES)


def refuse_unsound_file(root: str, path: Path) -> None:
    """Refuse a picture outside the tree, not a regular file, or too large.

    Args:
        root: The tree's root with all links resolved.
        path: The picture.

    Raises:
        DataError: naming the picture and the fault.
        FileNotFoundError: if it does not exist.
        OSError: if its folder cannot be read.
    """
    _refuse_unsound(root, path, "picture", MAX_FILE_BYTES)


def _refuse_unsound(root: str, path: Path, what: str, most: int) -> None:
    real = os.path.realpath(path)
    if os.path.commonpath([root, real]) != root:
        raise DataError(
            f"The {what} '{path}' leads out of the data tree, to '{real}'.",
            why="A link in a tree could show this site's other files to whoever made the tree.",
            remedy=f"Copy the {what} into the tree, or point data.path at where it really lies.",
        )
    found = os.stat(real)
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no plain file"
        raise DataError(
            f"The {what} '{path}' cannot be read: it is {kind}.",
            why=f"Only plain files are read as {what}s.",
            remedy="Remove it from the tree.",
        )
    if found.st_size > most:
        raise DataError(
            f"The {what} '{path}' is a file of {found.st_size / 1e6:,.0f} MB; "
            f"{most / 1e6:,.0f} MB is the most.",
            why=f"A file of that length is hardly one {what}, and is not read.",
            remedy="Cut it into parts, or take it out.",
        )


def refuse_absurd_size(path: Path, size: tuple[int, int]) -> None:
    """Refuse a picture by the size in its header, before decoding any pixel.

    Args:
        path: The picture.
        size: Its width and height, as its header says.

    Raises:
        DataError: for a side of 0 or over ``MAX_SIDE``, or more than ``MAX_PIXELS``.
    """
    width, height = size
    if min(width, height) >= 1 and max(width, height) <= MAX_SIDE and width * height <= MAX_PIXELS:
        return
    raise DataError(
        f"The picture '{path}' says that it is {width:,} x {height:,} pixels; at most "
        f"{MAX_SIDE:,} a side and {MAX_PIXELS / 1e6:.0f} million in all are decoded.",
        why="Decoding takes up to 16 bytes for each pixel, and a small file can unfold into all of "
        "the memory (a decompression bomb).",
        remedy="Cut it into tiles, shrink it, or take it out.",
    )
