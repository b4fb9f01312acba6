"""What is refused before a picture is opened or decoded: strangers' files are not trusted.

A data tree may have been unpacked from an archive that somebody else made. A link can lead
to any file of the machine, a few kilobytes can unfold into gigabytes, and what is called a
picture may be a pipe that never ends.
"""

import os
import stat
from pathlib import Path

from PIL import Image

from fgvc_core.errors import DataError

MAX_PIXELS = 64_000_000
"""Most pixels that a picture may unfold into.

Decoding one then takes at most 1.03 GB. Measured with Pillow 13 above an idle process, in bytes of
memory for each pixel, of black pictures: WebP 16, progressive CMYK JPEG 12, turned PNG and TIFF of
one strip 8, all others 7.4. What ``passing.py`` asks for is that much.
"""

MAX_SIDE = 30_000
"""Longest side of a picture, in pixels."""

MAX_FILE_BYTES = 512 * 1024**2
"""Longest file that is read as one picture."""

MAX_LIST_BYTES = 1024**3
"""Longest manifest or other list that is read: some ten million lines."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The decoders that a file may reach, whatever its name ends in."""


def refuse_unsound_list(root: Path, path: Path) -> None:
    """The same for a manifest or another list of a tree, whose reading would never end.

    Args:
        root: The tree's root.
        path: The list.

    Raises:
        DataError: naming the list and what is wrong with it.
        FileNotFoundError: if there is none.
        OSError: if its folder cannot be read.
    """
    _refuse_unsound(os.path.realpath(root), path, "list", MAX_LIST_BYTES)


def refuse_unsound_file(root: str, path: Path) -> None:
    """Refuse a path that leaves the tree, is no plain file, or is absurdly long.

    Args:
        root: The tree's root with every link resolved.
        path: The picture.

    Raises:
        DataError: naming the picture and what is wrong with it.
        FileNotFoundError: if there is none.
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


def refuse_absurd_size(path: Path, image: Image.Image) -> None:
    """Refuse a picture by the size that its header states, before a pixel is decoded.

    Raises:
        DataError: for a side of 0 or over ``MAX_SIDE``, or more than ``MAX_PIXELS``.
    """
    width, height = image.size
    if min(width, height) >= 1 and max(width, height) <= MAX_SIDE and width * height <= MAX_PIXELS:
        return
    raise DataError(
        f"The picture '{path}' says that it is {width:,} x {height:,} pixels; at most "
        f"{MAX_SIDE:,} a side and {MAX_PIXELS / 1e6:.0f} million in all are decoded.",
        why="Decoding takes up to 16 bytes for each pixel, and a small file can unfold into all of "
        "the memory (a decompression bomb).",
        remedy="Cut it into tiles, shrink it, or take it out.",
    )
