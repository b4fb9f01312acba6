"""Pictures stored as files: decoded on demand, with the path in every error."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fgvc_core.data.decoding import wait_for_turn
from fgvc_core.data.passing import memory_is_left, passing_fault, refuse_passing
from fgvc_core.data.reader import (
    as_rgb,
    deeper_than_8_bits,
    orientation_of,
    turned_boxes,
)
from fgvc_core.data.soundness import FORMATS, refuse_absurd_size, refuse_unsound_file
from fgvc_core.errors import DataError, FieldmarkError


class FileSource:
    """A :class:`~fgvc_core.data.table.PictureSource` over files under one folder.

    Args:
        root: The folder that the paths are relative to.
        relative_paths: One path per row.
        banner: Rows of stored pixels to cut off the bottom, for data sets that print a credit
            there (FGVC-Aircraft).
        follow_links: Read pictures that links outside the tree lead to.
    """

    def __init__(
        self,
        root: Path,
        relative_paths: Sequence[str],
        *,
        banner: int = 0,
        follow_links: bool = False,
    ) -> None:
        self.root = Path(root)
        self.relative_paths = tuple(relative_paths)
        self.banner = banner
        # Every path lies below "/".
        self.real_root = "/" if follow_links else os.path.realpath(self.root)
        self._keys: dict[int, bytes] = {}
        self._turned: dict[int, int] | None = None

    def __len__(self) -> int:
        return len(self.relative_paths)

    def path(self, row: int) -> Path:
        """Path of a row's picture."""
        return self.root / self.relative_paths[row]

    def picture(self, row: int, size: int | None = None) -> NDArray[np.uint8]:
        """One picture as RGB; see :class:`~fgvc_core.data.table.PictureSource`.

        With ``size`` a JPEG is decoded at 1/2, 1/4 or 1/8 where its short side stays at
        least ``size`` pixels (libjpeg's scaled decoding).

        Raises:
            DataError: if the file is missing, truncated, not a picture, outside the tree, too
                large, or deeper than 8 bits per channel (there is no agreed mapping of its
                values to 0..255).
            PassingFault: if memory, file descriptors or the disk failed.
        """
        path = self.path(row)
        try:
            return self._decode(path, size)
        except FieldmarkError:
            raise
        except FileNotFoundError:
            raise missing_pictures([str(path)]) from None
        except Exception as error:
            # Any kind: Pillow's decoders let errors of many types through.
            _refuse_unless_own(path, error)
            if isinstance(error, OSError) and error.errno is not None:
                raise _unreadable(path, error) from None
        # A decoder that got no memory may report a broken picture, so decode once more.
        try:
            return self._decode(path, size)
        except Exception as error:
            _refuse_unless_own(path, error)
            raise _unreadable(path, error) from None

    def _decode(self, path: Path, size: int | None) -> NDArray[np.uint8]:
        """Decode the picture; may raise any ``Exception``, as decoders do."""
        refuse_unsound_file(self.real_root, path)
        with Image.open(path, formats=FORMATS) as image:
            refuse_absurd_size(path, image)
            wait_for_turn(image.width * image.height)
            height = image.height
            deep = deeper_than_8_bits(image)
            if deep:
                raise _too_deep(path, deep)
            if size is not None and image.format == "JPEG":
                image.draft("RGB", (size, size))
            # A draft decode shrinks the picture, so the banner shrinks with it (rounded up).
            banner = -(-self.banner * image.height // height)
            return as_rgb(image, banner=banner)

    def content_key(self, row: int) -> bytes:
        """SHA-256 (32 bytes) of the file's bytes and the banner height, cached per instance.

        Raises:
            DataError: if the file is missing or cannot be read.
            PassingFault: if the machine is at fault.
        """
        key = self._keys.get(row)
        if key is None:
            path = self.path(row)
            try:
                refuse_unsound_file(self.real_root, path)
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256")
            except FieldmarkError:
                raise
            except FileNotFoundError:
                raise missing_pictures([str(path)]) from None
            except Exception as error:
                refuse_passing(path, error)
                raise _unreadable(path, error) from None
            if self.banner:
                content.update(f"\0banner {self.banner}".encode())
            key = self._keys[row] = content.digest()
        return key

    def pixel_size(self, row: int) -> tuple[int, int] | None:
        """Stored width and height without the banner, from the header; None if unreadable.

        Pixels are counted as they are stored, before the picture is turned upright.
        """
        path = self.path(row)
        try:
            refuse_unsound_file(self.real_root, path)
            with Image.open(path, formats=FORMATS) as image:
                return image.width, max(image.height - self.banner, 1)
        except Exception as error:
            refuse_passing(path, error)
            return None

    def orientation(self, row: int) -> int:
        """EXIF orientation of the stored picture, 1 to 8; 1 if unreadable."""
        path = self.path(row)
        try:
            refuse_unsound_file(self.real_root, path)
            with path.open("rb") as file:
                # Most files have no EXIF, which this tells much faster than a parser.
                if b"exif" not in file.read(1 << 16).lower():
                    return 1
            with Image.open(path, formats=FORMATS) as image:
                return orientation_of(image)
        except Exception as error:
            refuse_passing(path, error)
            return 1

    def orientations(self) -> dict[int, int]:
        """Row -> orientation of each stored picture that is not upright; cached."""
        if self._turned is None:
            found = ((row, self.orientation(row)) for row in range(len(self)))
            self._turned = {row: orientation for row, orientation in found if orientation != 1}
        return self._turned

    def upright_boxes(self, boxes_N4: NDArray[np.float64]) -> NDArray[np.float32]:
        """Boxes of all rows in stored pictures, as fractions, where they are in upright ones."""
        boxes_N4 = boxes_N4.astype(np.float32)
        for row, orientation in self.orientations().items():
            boxes_N4[row : row + 1] = turned_boxes(boxes_N4[row : row + 1], orientation)
        return boxes_N4

    def missing(self) -> list[str]:
        """Relative paths that name no file, in row order."""
        listings: dict[str, set[str]] = {}
        absent = []
        for relative in self.relative_paths:
            folder, name = os.path.split(os.path.join(self.root, relative))
            if folder not in listings:
                listings[folder] = _file_names(folder)
            if name not in listings[folder]:
                absent.append(relative)
        return absent


def missing_pictures(paths: Sequence[str], total: int | None = None) -> DataError:
    """Error for files that a data set names and that do not exist."""
    of = f" of {total}" if total else ""
    noun = "picture is" if len(paths) == 1 else "pictures are"
    return DataError(
        f"{len(paths)}{of} {noun} missing: {first_few(paths)}.",
        why="The data set names files that are not there.",
        remedy="Check data.path, and that the archive was unpacked whole.",
    )


def first_few(names: Sequence[object], count: int = 3) -> str:
    """First names of a list, quoted, and how many more there are.

    >>> first_few(["a", "b", "c", "d"], 2)
    "'a', 'b' and 2 more"
    """
    shown = ", ".join(f"'{name}'" for name in names[:count])
    more = len(names) - count
    return f"{shown} and {more} more" if more > 0 else shown


def _file_names(folder: str) -> set[str]:
    # One listing per folder is much faster than one stat per picture.
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if _is(entry, "file")}
    except (OSError, ValueError) as error:
        # ValueError: the path contains a null byte.
        refuse_passing(folder, error)
        return set()


def _is(entry: "os.DirEntry[str]", kind: Literal["file", "folder"]) -> bool:
    """Whether a folder's entry is of a kind, following links; False if it cannot be determined.

    A broken or circular link must not keep the other entries from being read.
    """
    try:
        return entry.is_file() if kind == "file" else entry.is_dir()
    except OSError as error:
        refuse_passing(entry.path, error)
        return False


def _refuse_unless_own(path: Path, error: Exception) -> None:
    """Raise PassingFault unless the error may be due to the picture itself.

    Errors from the operating system carry an errno. All others come from a decoder, which may
    raise any type, for a damaged file as well as for lack of memory; see ``passing.py``.
    """
    numbered = isinstance(error, OSError) and error.errno is not None
    if numbered or memory_is_left():
        if not isinstance(error, MemoryError):
            refuse_passing(path, error)
        return
    short = error if isinstance(error, MemoryError) else MemoryError("out of memory")
    raise passing_fault(path, short) from error


def _unreadable(path: Path, error: BaseException) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"The picture '{path}' cannot be read: {reason}.",
        why="It is cut short, damaged or not a picture.",
        remedy="Copy it again or remove it; 'fieldmark data check' lists all such files.",
    )


def _too_deep(path: Path, mode: str) -> DataError:
    return DataError(
        f"The picture '{path}' has more than 8 bits a channel ('{mode}').",
        why="How its values map to 0..255 is a choice that changes what a model sees.",
        remedy="Convert it to 8 bits with the window that your field uses.",
    )
