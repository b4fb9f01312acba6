"""Pictures stored as files: decoded on demand, with the path in every error."""

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fgvc_core.data.decoding import wait_for_turn
from fgvc_core.data.depth import Depth, read_deep, too_deep
from fgvc_core.data.dicom import read_dicom, size_of
from fgvc_core.data.file_kinds import MARK_BYTES, is_dicom, what_it_is
from fgvc_core.data.passing import memory_is_left, passing_fault, refuse_passing
from fgvc_core.data.reader import (
    Frame,
    as_rgb,
    deeper_than_8_bits,
    orientation_of,
    to_frame,
    turned_boxes,
)
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.soundness import FORMATS, refuse_absurd_size, refuse_unsound_file
from fgvc_core.errors import DataError, FieldmarkError
from fgvc_core.words import visible

Box = tuple[float, float, float, float]
"""x, y, width, height of an upright picture: fractions if none is above 1, else pixels."""


class FileSource:
    """A :class:`~fgvc_core.data.table.PictureSource` over files under one folder.

    Args:
        root: The folder that the paths are relative to.
        relative_paths: One path per row.
        banner: Rows of stored pixels to cut off the bottom, for data sets that print a credit
            there (FGVC-Aircraft).
        follow_links: Read pictures that links outside the tree lead to.
        crops: One box per row to cut out, or None.
        margin: See :func:`cut`.
        depth: How more than 8 bits a channel become 8; None: such pictures are refused.
        frame: Which frame of several is read.
    """

    def __init__(
        self,
        root: Path,
        relative_paths: Sequence[str],
        *,
        banner: int = 0,
        follow_links: bool = False,
        crops: Sequence[Box] | None = None,
        margin: float = 0.0,
        depth: Depth | None = None,
        frame: Frame = "first",
    ) -> None:
        self.root = Path(root)
        self.relative_paths = tuple(relative_paths)
        self.banner = banner
        # Every path lies below "/".
        self.real_root = "/" if follow_links else os.path.realpath(self.root)
        self.crops = None if crops is None else tuple(crops)
        self.margin = margin
        self.depth = depth
        self.frame: Frame = frame
        self._keys: dict[int, bytes] = {}
        self._turned: dict[int, int] | None = None

    def __len__(self) -> int:
        return len(self.relative_paths)

    def read_as(self, settings: DataSettings) -> "FileSource":
        """Read files as ``data.depth`` and ``data.frame`` say; returns this source."""
        self.depth, self.frame = settings.depth_rule, settings.frame
        return self

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
            return self._decode(row, path, size)
        except FieldmarkError:
            raise
        except FileNotFoundError:
            guess = "Mend or remove the link." if path.is_symlink() else ""
            raise missing_pictures([str(path)], guess=guess) from None
        except Exception as error:
            # Any kind: Pillow's decoders let errors of many types through.
            _refuse_unless_own(path, error)
            if isinstance(error, OSError) and error.errno is not None:
                raise _unreadable(path, error) from None
        # A decoder that got no memory may report a broken picture, so decode once more.
        try:
            return self._decode(row, path, size)
        except Exception as error:
            _refuse_unless_own(path, error)
            raise _unreadable(path, error) from None

    def _decode(self, row: int, path: Path, size: int | None) -> NDArray[np.uint8]:
        """Decode the picture; may raise any ``Exception``, as decoders do."""
        refuse_unsound_file(self.real_root, path)
        if is_dicom(path):
            picture_HWC = read_dicom(path, self.depth, self.frame)
            if self.crops is None:
                return picture_HWC
            whole_HW = picture_HWC.shape[:2]
            _refuse_outside(path, self.crops[row], (whole_HW[1], whole_HW[0]))
            return cut(picture_HWC, self.crops[row], max(whole_HW), self.margin)
        with Image.open(path, formats=FORMATS) as image:
            to_frame(image, self.frame)
            refuse_absurd_size(path, image.size)
            wait_for_turn(image.width * image.height)
            height, whole, stored = image.height, max(image.size), image.size
            deep = deeper_than_8_bits(image)
            if deep and self.depth is None:
                raise too_deep(path, deep)
            crop = None if self.crops is None else self.crops[row]
            if size is not None and image.format == "JPEG":
                if crop is not None:
                    size = _size_of_whole(size, crop, image.size)
                image.draft("RGB", (size, size))
            # A draft decode shrinks the picture, so the banner shrinks with it (rounded up).
            banner = -(-self.banner * image.height // height)
            if deep and self.depth is not None:
                picture_HWC = read_deep(path, image, self.depth)
            else:
                picture_HWC = as_rgb(image, banner=banner)
            if crop is None:
                return picture_HWC
            wide = picture_HWC.shape[1] >= picture_HWC.shape[0]
            _refuse_outside(
                path, crop, (max(stored), min(stored)) if wide else (min(stored), max(stored))
            )
            return cut(picture_HWC, crop, whole, self.margin)

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

    def view_key(self, row: int) -> bytes:
        """Digest (32 bytes) of what :meth:`picture` shows: the file, and the part cut out.

        Raises:
            DataError: as for :meth:`content_key`.
            PassingFault: if the machine is at fault.
        """
        how: tuple[object, ...] = () if self.crops is None else (*self.crops[row], self.margin)
        if self.depth is not None:
            how = (*how, repr(self.depth))
        if self.frame != "first":
            how = (*how, self.frame)
        if not how:
            return self.content_key(row)
        return hashlib.sha256(self.content_key(row) + repr(how).encode()).digest()

    def cropped(self, paths: Sequence[str], crops: Sequence[Box], margin: float) -> "FileSource":
        """A source of the same tree with a box to cut out of each picture."""
        found = FileSource(self.root, paths, banner=self.banner, crops=crops, margin=margin)
        found.real_root, found.depth, found.frame = self.real_root, self.depth, self.frame
        return found

    def pixel_size(self, row: int) -> tuple[int, int] | None:
        """Stored width and height without the banner, from the header; None if unreadable.

        Pixels are counted as they are stored, before the picture is turned upright.
        """
        path = self.path(row)
        try:
            refuse_unsound_file(self.real_root, path)
            if is_dicom(path):
                return size_of(path)
            with Image.open(path, formats=FORMATS) as image:
                to_frame(image, self.frame)
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
                to_frame(image, self.frame)
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
        upright_N4 = boxes_N4.astype(np.float32)
        for row, orientation in self.orientations().items():
            upright_N4[row : row + 1] = turned_boxes(upright_N4[row : row + 1], orientation)
        return upright_N4

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


def cut(picture_HWC: NDArray[np.uint8], box: Box, whole: int, margin: float) -> NDArray[np.uint8]:
    """The square around a box, as far as the picture reaches.

    A square, because the model's view is one: of a long box the ends would be cut off later.

    Args:
        picture_HWC: The upright picture, possibly decoded smaller.
        box: In fractions, or in pixels of the whole picture.
        whole: Longest side of the whole picture in pixels.
        margin: Room on each side, as a share of the box's longer side.
    """
    height, width = picture_HWC.shape[:2]
    scale = max(height, width) / whole
    unit = (scale, scale) if max(box) > 1.0 else (width, height)
    x, y, w, h = box[0] * unit[0], box[1] * unit[1], box[2] * unit[0], box[3] * unit[1]
    side = max(w, h) * (1 + 2 * margin)
    spans = []
    for middle, most in ((x + w / 2, width), (y + h / 2, height)):
        # Moved inside the picture where it fits, so that the subject stays whole.
        low = min(max(middle - side / 2, 0.0), max(most - side, 0.0))
        first = min(max(round(low), 0), most - 1)
        spans.append((first, min(first + max(round(side), 1), most)))
    (left, right), (top, bottom) = spans
    return picture_HWC[top:bottom, left:right]


def _refuse_outside(path: Path, box: Box, size: tuple[int, int]) -> None:
    """Refuse a box that shows nothing of the upright picture, or is in no known unit.

    Raises:
        DataError: with the box and the picture's size.
    """
    x, y, width, height = box
    pixels = max(box) > 1.0
    right, bottom = size if pixels else (1.0, 1.0)
    if pixels and max(width, height) < 2.0:
        wrong = "has numbers above 1 and so is in pixels, and is less than 2 pixels large"
    elif x >= right or y >= bottom or x + width <= 0 or y + height <= 0:
        wrong = f"lies outside the picture of {size[0]} x {size[1]} pixels"
    else:
        return
    raise DataError(
        f"The box {', '.join(f'{value:g}' for value in box)} of the picture '{path}' {wrong}.",
        why="What is cut out would not be the subject.",
        remedy="Boxes are x, y, width, height: all four in pixels of the upright picture, or all "
        "as fractions from 0 to 1.",
    )


def _size_of_whole(size: int, box: Box, stored: tuple[int, int]) -> int:
    """Short side that the whole picture must keep so that the box's keeps ``size``."""
    share = min(box[2:]) if max(box) <= 1.0 else min(box[2:]) / max(min(stored), 1)
    return math.ceil(size / min(max(share, 1e-3), 1.0))


def missing_pictures(paths: Sequence[str], total: int | None = None, guess: str = "") -> DataError:
    """Error for files that a data set names and that do not exist; ``guess``: where they may be."""
    of = f" of {total}" if total else ""
    # "1 of 12 pictures is missing": the noun goes by the total, the verb by the count.
    noun = "picture" if len(paths) == 1 and not total else "pictures"
    noun += " is" if len(paths) == 1 else " are"
    return DataError(
        f"{len(paths)}{of} {noun} missing: {first_few(paths)}.",
        why="The data set names files that are not there.",
        remedy=guess or "Check data.path, and that the archive was unpacked whole.",
    )


def first_few(names: Sequence[object], count: int = 3) -> str:
    """First names of a list on one line, quoted, and how many more there are.

    >>> first_few(["a", "b", "c", "d"], 2)
    "'a', 'b' and 2 more"
    """
    shown = ", ".join(f"'{visible(str(name))}'" for name in names[:count])
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


def _told_by_bytes(path: Path) -> tuple[str, str]:
    try:
        with path.open("rb") as file:
            return what_it_is(file.read(MARK_BYTES))
    except OSError:
        return "", ""


def _unreadable(path: Path, error: BaseException) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        what, remedy = _told_by_bytes(path)
        if what:
            return DataError(
                f"The picture '{path}' cannot be read: {what}.",
                why="There are no pixels that could be read.",
                remedy=remedy,
            )
    return DataError(
        f"The picture '{path}' cannot be read: {reason}.",
        why="It is cut short, damaged or not a picture.",
        remedy="Copy it again or remove it; 'fieldmark data check' lists all such files.",
    )
