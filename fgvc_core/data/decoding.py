"""Decodes many pictures on all cores of this process, and collects their faults.

Decoding takes up to 16 bytes of memory per pixel (WebP; see ``soundness.py``). To bound memory,
pictures above :data:`LARGE_PIXELS` are decoded one at a time; smaller ones on all cores at once.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from fgvc_core.cores import usable_cores
from fgvc_core.data.passing import is_passing
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError

LARGE_PIXELS = 25_000_000
"""A picture with more pixels is large; those of a 24-megapixel camera are not."""

_lock = threading.Lock()


class _State(threading.local):
    may_wait = False
    holds = False


_state = _State()


@contextmanager
def one_large_at_a_time() -> Iterator[None]:
    """Context for decoding and using one picture in one of several threads."""
    _state.may_wait = True
    try:
        yield
    finally:
        _state.may_wait = False
        if _state.holds:
            _state.holds = False
            _lock.release()


def wait_for_turn(pixels: int) -> None:
    """Before decoding a large picture, take the lock; the ``with`` block releases it.

    Outside a block of :func:`one_large_at_a_time` this does nothing.

    Args:
        pixels: Number of pixels according to the picture's header.
    """
    if pixels > LARGE_PIXELS and _state.may_wait and not _state.holds:
        _lock.acquire()
        _state.holds = True


Use = Callable[[int, NDArray[np.uint8]], None]
"""Called with (position, picture (height, width, 3)), from several threads at once."""

Tell = Callable[[int, int], None]
"""Called with (pictures done, total), from one thread."""

_CHUNK = 16


def decode_each(
    table: ExampleTable,
    short_side: int,
    use: Use,
    tell: Tell | None = None,
    *,
    whatever: bool = False,
    known: Callable[[int], bool] = lambda position: False,
) -> dict[int, DataError]:
    """Decode each picture of a table once and hand it to ``use``.

    Args:
        table: The examples.
        short_side: Fewest pixels that a picture's short side must keep.
        use: Called for each picture, in any order; an error it raises stops the decoding.
        tell: Called from time to time with the progress.
        whatever: Treat every exception from the source, of any type, as the picture's fault,
            unless the machine is at fault.
        known: Called from several threads at once; pictures for which it is true are sound and
            are not decoded again.

    Returns:
        Position -> error of each missing or damaged picture, sorted by position.

    Raises:
        PassingFault: if memory, file descriptors or the disk failed.
    """
    faults: dict[int, DataError] = {}

    def decode_one(position: int) -> None:
        try:
            picture_HWC = table.picture(position, short_side)
        except DataError as error:
            faults[position] = error
            return
        except Exception as error:
            if not whatever or is_passing(error):
                raise
            what = f"The picture '{table.ids[position]}' cannot be read: {error!r}."
            faults[position] = DataError(what, remedy="Copy it again or remove it.")
            return
        use(position, picture_HWC)

    def decode(start: int) -> int:
        stop = min(start + _CHUNK, len(table))
        for position in range(start, stop):
            if known(position):
                continue
            # decode_one frees the picture before the block lets the next large one start.
            with one_large_at_a_time():
                decode_one(position)
        return stop - start

    done = 0
    # Threads suffice: Pillow releases the GIL while it decodes and resizes.
    with ThreadPoolExecutor(cores()) as pool:
        try:
            for count in pool.map(decode, range(0, len(table), _CHUNK)):
                done += count
                if tell is not None:
                    tell(done, len(table))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return dict(sorted(faults.items()))


def cores() -> int:
    """Number of cores that this process may use, by its CPU affinity and its cgroup's quota."""
    return len(usable_cores())
