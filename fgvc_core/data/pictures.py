"""Decoded pictures of a table, ready for batches: each picture is decoded only once.

With a cache folder they are in one uint8 array on disk that every process maps into memory, so
that workers share the pages. The file's name is a digest of all pictures' contents, in order,
and of the crop, so other pictures or another order make another file.
"""

import errno
import hashlib
import json
import math
import mmap
import os
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from fgvc_core.data.decoding import decode_each
from fgvc_core.data.files import FileSource, first_few
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError
from fgvc_core.files import FILE_MODE, FULL, make_private, private_folder, write_privately

if TYPE_CHECKING:
    import torch

Pictures = NDArray[np.uint8] | list[NDArray[np.uint8]]
"""N pictures (size, size, 3), as one array or as a list."""

_VERSION = b"fieldmark pictures 3"


class PictureBank:
    """N pictures as squares of one size, by position in a table.

    A pickled bank with a cache carries only the file's path and maps it again.

    Args:
        table: The examples, N of them.
        size: Side of the squares in pixels.
        crop: Share of the short side that the square keeps, above 0 to 1: the short side is
            resized to ``round(size / crop)`` pixels, then the center is cut out.
        interpolation: ``bilinear`` or ``bicubic``.
        cache: Folder for ``pictures/<key>.npy``; without one the pictures stay in this
            process's memory.
        tolerant: Replace an unreadable picture by a black one, and record it in ``faults``,
            instead of raising.

    Attributes:
        faults: Position -> the picture's fault; empty unless ``tolerant``.

    Raises:
        DataError: if pictures are missing or damaged (naming the first few and their
            number), or the cache's disk is full.
    """

    def __init__(
        self,
        table: ExampleTable,
        size: int,
        crop: float = 1.0,
        interpolation: str = "bilinear",
        cache: Path | None = None,
        *,
        tolerant: bool = False,
    ) -> None:
        self.size = size
        self.faults: dict[int, str] = {}
        self._length = len(table)
        self._index: NDArray[np.int64] | None = None
        self._path: Path | None = None
        self._ready_table: ExampleTable | None = None
        self._pictures: Pictures | None = _ready(table, size) if crop == 1.0 else None
        if self._pictures is not None:
            self._ready_table = table
        elif cache is None or not len(table):
            decoded_NHWC = np.zeros((len(table), size, size, 3), dtype=np.uint8)
            self.faults = _decode_into(decoded_NHWC, table, crop, interpolation, tolerant)
            self._pictures = decoded_NHWC
        else:
            folder = Path(cache) / "pictures"
            self._path, self.faults = _cached(table, size, crop, interpolation, folder, tolerant)

    def __len__(self) -> int:
        return self._length

    def batch(self, positions: Sequence[int] | NDArray[np.int64]) -> "torch.Tensor":
        """The pictures at B positions of the table.

        Args:
            positions: B positions, 0 to N-1, in any order; repeats are allowed.

        Returns:
            uint8 (B, 3, size, size) on the CPU, contiguous, a copy.
        """
        import torch

        at = np.asarray(positions, dtype=np.int64)
        if self._index is not None:
            at = self._index[at]
        pictures = self._open()
        if isinstance(pictures, np.ndarray):
            chosen_BHWC = np.asarray(pictures[at])
        else:
            chosen_BHWC = np.stack([pictures[i] for i in at.tolist()])
        return torch.from_numpy(chosen_BHWC).permute(0, 3, 1, 2).contiguous()

    def take(self, positions: Sequence[int] | NDArray[np.int64]) -> "PictureBank":
        """Bank of the pictures at these positions; it shares the decoded pixels."""
        at = np.asarray(positions, dtype=np.int64)
        part = copy(self)
        part._index = at if self._index is None else self._index[at]
        part._length = len(at)
        part.faults = {}
        return part

    def _open(self) -> Pictures:
        if self._pictures is None:
            if self._path is not None:
                self._pictures = np.load(self._path, mmap_mode="r")
            else:
                assert self._ready_table is not None
                self._pictures = _ready(self._ready_table, self.size)
        assert self._pictures is not None
        return self._pictures

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self._path is not None or self._ready_table is not None:
            # A memory map would pickle all its pixels; the path is enough.
            state["_pictures"] = None
        return state


def _ready(table: ExampleTable, size: int) -> list[NDArray[np.uint8]] | None:
    """The table's pictures if its source already maps them from disk, else None.

    The embedded set does: its own cache equals what a bank would write.
    """
    if not len(table) or isinstance(table.source, FileSource):
        return None
    views = []
    for position in range(len(table)):
        view_HWC = table.picture(position, size)
        if view_HWC.shape != (size, size, 3) or not _is_mapped(view_HWC):
            return None
        views.append(view_HWC)
    return views


def _is_mapped(array: NDArray[np.uint8]) -> bool:
    owner: Any = array
    while owner is not None:
        if isinstance(owner, mmap.mmap):
            return True
        owner = getattr(owner, "base", None)
    return False


def _cached(
    table: ExampleTable, size: int, crop: float, interpolation: str, folder: Path, tolerant: bool
) -> tuple[Path, dict[int, str]]:
    """Path of the table's file in the cache and its faults; one process makes it if missing.

    Faults depend on the pictures' contents, of which the file's name is a digest: those of a
    tolerant bank are kept next to it, under a name that strict banks never look for.
    """
    shape = (len(table), size, size, 3)
    stem = _key(table, size, crop, interpolation)
    strict = folder / f"{stem}.npy"
    if _is_whole(strict, shape):
        return strict, {}
    path = folder / f"{stem}.tolerant.npy" if tolerant else strict
    if tolerant and _is_whole(path, shape):
        return path, _read_faults(path)
    _make_folder(folder)
    with FileLock(path.with_suffix(".lock"), mode=FILE_MODE):
        if _is_whole(path, shape):
            return path, _read_faults(path) if tolerant else {}
        partial = path.with_suffix(".partial")
        try:
            pictures_NHWC = _reserve(partial, shape)
            faults = _decode_into(pictures_NHWC, table, crop, interpolation, tolerant)
            pictures_NHWC.flush()
            del pictures_NHWC
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            if not faults:
                path = strict
            else:
                write_privately(_faults_of(path), json.dumps(faults))
            os.replace(partial, path)
        except OSError as error:
            if error.errno in FULL:
                raise _no_room(folder, shape, error) from None
            raise
        finally:
            partial.unlink(missing_ok=True)
    return path, faults


def _no_room(folder: Path, shape: tuple[int, ...], error: OSError) -> DataError:
    return DataError(
        f"The cache '{folder}' has no room for {math.prod(shape) / 1e6:.0f} MB of decoded "
        f"pictures: {error.strerror}.",
        why="They are kept so that no picture is decoded twice.",
        remedy="Free space there, or put the cache on another disk.",
    )


def _faults_of(path: Path) -> Path:
    return path.with_suffix(".faults.json")


def _read_faults(path: Path) -> dict[int, str]:
    try:
        found = json.loads(_faults_of(path).read_text(encoding="utf-8"))
        return {int(position): str(what) for position, what in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"The cache '{path}' does not say which of its pictures could be read: {error}.",
            why="Others would be learned from as black squares.",
            remedy="Delete that file; its pictures will be decoded again.",
        ) from None


def _make_folder(folder: Path) -> None:
    try:
        private_folder(folder)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise DataError(
            f"The cache '{folder}' cannot be used: {error.strerror}.",
            why="Decoded pictures are kept there so that none is decoded twice.",
            remedy="Name a folder that you may write to.",
        ) from None


def _key(table: ExampleTable, size: int, crop: float, interpolation: str) -> str:
    digest = hashlib.sha256(_VERSION)
    digest.update(f"\0{size}\0{crop!r}\0{interpolation}\0{len(table)}\0".encode())
    for position in range(len(table)):
        digest.update(table.view_key(position))
    return digest.hexdigest()


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether the file exists and has the expected shape and full length."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return found.shape == shape and found.dtype == np.uint8


def _reserve(path: Path, shape: tuple[int, ...]) -> "np.memmap[Any, np.dtype[np.uint8]]":
    """Create a .npy file of the given shape with its disk blocks allocated.

    Without the allocation, a full disk causes a bus error on the first write to a page.
    """
    make_private(path)
    pictures_NHWC = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        try:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in FULL:
                raise
            # Else this file system cannot preallocate blocks; it may still have space.
    return pictures_NHWC


def _decode_into(
    pictures_NHWC: NDArray[np.uint8],
    table: ExampleTable,
    crop: float,
    interpolation: str,
    tolerant: bool = False,
) -> dict[int, str]:
    """Decode all pictures; return the faults if ``tolerant``, else raise."""
    from fgvc_core.data.transforms import square

    size = pictures_NHWC.shape[1]

    def keep(position: int, picture_HWC: NDArray[np.uint8]) -> None:
        pictures_NHWC[position] = square(picture_HWC, size, crop, interpolation)

    found = decode_each(table, round(size / crop), keep, whatever=tolerant)
    if tolerant:
        return {position: fault.what for position, fault in found.items()}
    faults = list(found.values())
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise DataError(
            f"{len(faults)} of {len(table)} pictures cannot be read: "
            f"{first_few([fault.what for fault in faults])}.",
            why=faults[0].why,
            remedy=faults[0].remedy,
        )
    return {}
