"""Pictures in files: decoded on demand, named in every error."""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fgvc_core.data.soundness import FORMATS, refuse_absurd_size, refuse_unsound_file
from fgvc_core.errors import DataError

PICTURE_ENDINGS = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

# What Pillow's readers raise on damaged files: a decoder's own errors leak through.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_DEEP_MODES = ("I", "F")


class FileSource:
    """A :class:`~fgvc_core.data.table.PictureSource` over files under one folder.

    Args:
        root: The folder that the paths are relative to.
        relative_paths: One path a row.
        upright: Turn a picture as its EXIF orientation asks. Data sets whose boxes and
            parts refer to the stored pixels (CUB) leave it off.
        banner: Rows of stored pixels that are cut off the bottom, for data sets that print
            their credits there (FGVC-Aircraft).
    """

    def __init__(
        self, root: Path, relative_paths: Sequence[str], *, upright: bool = True, banner: int = 0
    ) -> None:
        self.root = Path(root)
        self.relative_paths = tuple(relative_paths)
        self.upright = upright
        self.banner = banner
        self._real_root = os.path.realpath(self.root)
        self._keys: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.relative_paths)

    def path(self, row: int) -> Path:
        """Where a row's picture lies."""
        return self.root / self.relative_paths[row]

    def picture(self, row: int, size: int | None = None) -> NDArray[np.uint8]:
        """One picture as RGB; see :class:`~fgvc_core.data.table.PictureSource`.

        With ``size`` a JPEG is decoded at 1/2, 1/4 or 1/8 where its short side stays at
        least ``size`` pixels (libjpeg's scaled decoding).

        Raises:
            DataError: if the file is missing, cut short, not a picture, leads out of the
                tree, is absurdly large, or deeper than 8 bits a channel (its values have
                no agreed way into 0..255).
        """
        path = self.path(row)
        try:
            refuse_unsound_file(self._real_root, path)
            with Image.open(path, formats=FORMATS) as image:
                refuse_absurd_size(path, image)
                height = image.height
                if image.mode.startswith(_DEEP_MODES):
                    raise _too_deep(path, image.mode)
                if size is not None and image.format == "JPEG":
                    image.draft("RGB", (size, size))
                upright = ImageOps.exif_transpose(image) if self.upright else image
                picture_HWC = np.array(upright.convert("RGB"), dtype=np.uint8)
                # A draft is smaller than what is stored, and its banner with it.
                banner = -(-self.banner * image.height // height)
                return picture_HWC[: max(len(picture_HWC) - banner, 1)]
        except FileNotFoundError:
            raise missing_pictures([str(path)]) from None
        except _DAMAGE as error:
            raise _unreadable(path, error) from None

    def content_key(self, row: int) -> bytes:
        """SHA-256 (32 bytes) of the file's bytes and of what is cut off, read once an instance.

        Raises:
            DataError: if the file is missing or cannot be read.
        """
        key = self._keys.get(row)
        if key is None:
            path = self.path(row)
            try:
                refuse_unsound_file(self._real_root, path)
                content = hashlib.sha256(path.read_bytes())
            except FileNotFoundError:
                raise missing_pictures([str(path)]) from None
            except OSError as error:
                raise _unreadable(path, error) from None
            if self.banner:
                content.update(f"\0banner {self.banner}".encode())
            key = self._keys[row] = content.digest()
        return key

    def pixel_size(self, row: int) -> tuple[int, int] | None:
        """Width and height without the banner, from the header alone; None if unreadable."""
        path = self.path(row)
        try:
            refuse_unsound_file(self._real_root, path)
            with Image.open(path, formats=FORMATS) as image:
                return image.width, max(image.height - self.banner, 1)
        except (*_DAMAGE, DataError):
            return None

    def missing(self) -> list[str]:
        """The relative paths that are no files, in row order."""
        listings: dict[str, set[str]] = {}
        absent = []
        for relative in self.relative_paths:
            folder, name = os.path.split(os.path.join(self.root, relative))
            if folder not in listings:
                listings[folder] = _file_names(folder)
            if name not in listings[folder]:
                absent.append(relative)
        return absent


def tree_pictures(top: Path) -> Iterator[str]:
    """Paths relative to a folder of all pictures below it, hidden ones left out, sorted."""
    for folder, subfolders, files in os.walk(top):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in PICTURE_ENDINGS:
                yield (Path(folder) / name).relative_to(top).as_posix()


def missing_pictures(paths: Sequence[str], total: int | None = None) -> DataError:
    """The error for files that a data set names and that are not there."""
    of = f" of {total}" if total else ""
    noun = "picture is" if len(paths) == 1 else "pictures are"
    return DataError(
        f"{len(paths)}{of} {noun} missing: {first_few(paths)}.",
        why="The data set names files that are not there.",
        remedy="Check data.path, and that the archive was unpacked whole.",
    )


def first_few(names: Sequence[object], count: int = 3) -> str:
    """The first names of a list, quoted, and how many more there are.

    >>> first_few(["a", "b", "c", "d"], 2)
    "'a', 'b' and 2 more"
    """
    shown = ", ".join(f"'{name}'" for name in names[:count])
    more = len(names) - count
    return f"{shown} and {more} more" if more > 0 else shown


def _file_names(folder: str) -> set[str]:
    # One listing a folder: a data set of 10,000 pictures needs no 10,000 stats.
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):
        # ValueError: a path with a null byte in it names no folder.
        return set()


def _unreadable(path: Path, error: BaseException) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"The picture '{path}' cannot be read: {reason}.",
        why="It is cut short, damaged or not a picture.",
        remedy="Copy it again or remove it; 'fieldmark data check' lists all such files.",
    )


def _too_deep(path: Path, mode: str) -> DataError:
    return DataError(
        f"The picture '{path}' has more than 8 bits a channel (mode '{mode}').",
        why="How its values map to 0..255 is a choice that changes what a model sees.",
        remedy="Convert it to 8 bits with the window that your field uses.",
    )
