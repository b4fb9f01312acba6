"""Cache of drawn pictures on disk: written once, complete, and verified before use."""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from fgvc_core.data.fieldmarks.bird import PART_NAMES
from fgvc_core.errors import DataError
from fgvc_core.files import FILE_MODE, private_folder, replacing

Picture = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]
"""uint8 (size, size, 3), its parts float32 (P, 3) and its box float32 (4,)."""

_KINDS = ("pictures", "parts", "boxes")
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Drawn:
    """One split's files, mapped read-only.

    Attributes:
        pictures_NHWC: uint8 (N, size, size, 3).
        parts_NP3: float32 (N, P, 3); see :class:`ExampleTable`.
        boxes_N4: float32 (N, 4); see :class:`ExampleTable`.
    """

    pictures_NHWC: NDArray[np.uint8]
    parts_NP3: NDArray[np.float32]
    boxes_N4: NDArray[np.float32]


def ensure_drawn(stem: Path, count: int, size: int, draw_one: Callable[[int], Picture]) -> None:
    """Draw N pictures unless they are on disk; one process draws, others wait.

    Args:
        stem: The files' common path and name prefix.
        count: N, at least 1.
        size: Side in pixels.
        draw_one: Draws the picture of an index, 0 to N-1.

    Raises:
        DataError: if the folder is not writable, or its disk is full.
    """
    if _is_drawn(stem):
        return
    try:
        private_folder(stem.parent)
        with FileLock(f"{stem}.lock", mode=FILE_MODE):
            if not _is_drawn(stem):
                _draw_all(stem, count, size, draw_one)
    except OSError as error:
        raise DataError(
            f"The embedded pictures cannot be kept in '{stem.parent}': {error.strerror or error}.",
            why="They are drawn once and read from there by every process.",
            remedy="Set FIELDMARK_CACHE to a folder with room that you may write to.",
        ) from None


def open_drawn(stem: Path, count: int, size: int) -> Drawn:
    """Map what :func:`ensure_drawn` wrote, after verifying the checksums.

    Raises:
        DataError: naming a file that is missing, truncated or damaged.
    """
    try:
        sums = json.loads(_path(stem, "sums").read_text())
    except (OSError, ValueError) as error:
        raise _damaged(_path(stem, "sums"), str(error)) from None
    shapes = {
        "pictures": (count, size, size, 3),
        "parts": (count, len(PART_NAMES), 3),
        "boxes": (count, 4),
    }
    found = {}
    for kind in _KINDS:
        path = _path(stem, kind)
        try:
            found[kind] = np.load(path, mmap_mode="r", allow_pickle=False)
            with path.open("rb") as file:
                total = _sum(file)
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(path, str(error)) from None
        if not isinstance(sums, dict) or total != sums.get(kind):
            raise _damaged(path, "its bytes are not those that were written")
        if found[kind].shape != shapes[kind]:
            raise _damaged(path, f"its shape is {found[kind].shape}")
    return Drawn(found["pictures"], found["parts"], found["boxes"])


def _draw_all(stem: Path, count: int, size: int, draw_one: Callable[[int], Picture]) -> None:
    pictures_NHWC = np.empty((count, size, size, 3), dtype=np.uint8)
    parts_NP3 = np.empty((count, len(PART_NAMES), 3), dtype=np.float32)
    boxes_N4 = np.empty((count, 4), dtype=np.float32)
    for index in range(count):
        pictures_NHWC[index], parts_NP3[index], boxes_N4[index] = draw_one(index)
    sums = {}
    arrays: tuple[NDArray[Any], ...] = (pictures_NHWC, parts_NP3, boxes_N4)
    for kind, array in zip(_KINDS, arrays, strict=True):
        with (
            replacing(_path(stem, kind), private=True, durable=True) as aside,
            aside.open("w+b") as file,
        ):
            np.save(file, array, allow_pickle=False)
            file.seek(0)
            sums[kind] = _sum(file)
    # Written last: if the checksums exist, so does everything else.
    with replacing(_path(stem, "sums"), private=True, durable=True) as aside:
        aside.write_text(json.dumps(sums))


def _is_drawn(stem: Path) -> bool:
    return all(_path(stem, kind).exists() for kind in (*_KINDS, "sums"))


def _path(stem: Path, kind: str) -> Path:
    return stem.with_name(f"{stem.name}-{kind}.{'json' if kind == 'sums' else 'npy'}")


def _sum(file: BinaryIO) -> int:
    total = 0
    while block := file.read(_BLOCK):
        total = zlib.crc32(block, total)
    return total


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"The cached pictures in '{path}' are damaged: {what}.",
        why="They would silently change what is learned and what is scored.",
        remedy="Delete that file; the pictures will be drawn again.",
    )
