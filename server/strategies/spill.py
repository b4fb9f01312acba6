"""A temporary file with every reply of a round, read back as blocks of all replies at once.

The file has no name, so a process that dies leaves nothing behind. It is memory-mapped; pages are
released after each block, so resident memory stays bounded for any number of replies.
"""

import mmap
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fieldmark.server.strategies.base import Tensors

BYTES_A_VALUE = 24
"""Bytes for one value of one reply: the mapped page, the block, and two temporaries in float64."""

LEAST_VALUES = 256


class Replies(Protocol):
    """S replies of ``size`` values each, read block by block."""

    weights: list[float]
    size: int

    def __len__(self) -> int: ...

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """(which values, float32 (V, S): those values of all S replies), block by block."""
        ...


class ShapedReplies(Replies, Protocol):
    """Replies with random access and known tensor shapes."""

    shapes: dict[str, tuple[int, ...]]
    """Shapes by name, in the order of the values."""

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """float32 (V, S): values ``start`` to ``stop`` of all S replies."""
        ...


class Spill:
    """The replies of one round.

    Args:
        folder: Folder of the file; None: the system's temporary folder.
        limit_mb: Memory for a block and a rule's intermediate results, in MB (1e6 bytes).
    """

    def __init__(self, folder: Path | None, limit_mb: float) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 closed by __exit__
        self._limit = limit_mb * 1e6
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.weights: list[float] = []
        self.size = 0

    def __enter__(self) -> "Spill":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self.weights)

    def add(self, tensors: Tensors, weight: float) -> None:
        """Write one reply's values, tensors in order of names."""
        if not self.shapes:
            self.shapes = {name: tuple(tensors[name].shape) for name in sorted(tensors)}
            self.size = sum(tensors[name].size for name in self.shapes)
        for name in self.shapes:
            values = np.ascontiguousarray(tensors[name], dtype="<f4")
            self._file.write(values.reshape(-1).view(np.uint8).data)
        self.weights.append(weight)

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """(which values, float32 (V, S): those values of all S replies), block by block."""
        self._file.flush()
        count = len(self)
        width = max(int(self._limit / (BYTES_A_VALUE * count)), LEAST_VALUES)
        # Whole pages are mapped: narrower blocks would map more than they read.
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            for start in range(0, self.size, width):
                stop = min(start + width, self.size)
                yield slice(start, stop), self._read(mapped, start, stop)
                if hasattr(mmap, "MADV_DONTNEED"):
                    mapped.madvise(mmap.MADV_DONTNEED)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """float32 (V, S): values ``start`` to ``stop`` of all S replies."""
        self._file.flush()
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return self._read(mapped, start, stop)

    def _read(self, mapped: mmap.mmap, start: int, stop: int) -> NDArray[np.float32]:
        block_VS = np.empty((stop - start, len(self)), dtype=np.float32)
        for reply in range(len(self)):
            offset = 4 * (reply * self.size + start)
            # Copied at once: the map cannot close while a view exists.
            block_VS[:, reply] = np.frombuffer(
                mapped, dtype="<f4", count=stop - start, offset=offset
            )
        return block_VS

    def reply(self, position: int, names: Collection[str] | None = None) -> Tensors:
        """One reply's tensors as they were added; ``names``: only these."""
        tensors, offset = {}, 4 * position * self.size
        for name, shape in self.shapes.items():
            count = int(np.prod(shape, dtype=np.int64))
            if names is None or name in names:
                self._file.seek(offset)
                tensors[name] = np.frombuffer(self._file.read(4 * count), "<f4").reshape(shape)
            offset += 4 * count
        self._file.seek(0, os.SEEK_END)
        return tensors

    def tensors(self, flat: NDArray[np.float32]) -> Tensors:
        """float32 (size,) as tensors by name."""
        tensors, start = {}, 0
        for name, shape in self.shapes.items():
            count = int(np.prod(shape, dtype=np.int64))
            tensors[name] = flat[start : start + count].reshape(shape)
            start += count
        return tensors
