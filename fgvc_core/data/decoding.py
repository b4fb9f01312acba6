"""Decode many pictures on all cores of this process, and gather what is wrong with them.

Very large pictures are decoded one at a time, so that memory does not grow with the cores.

Decoding takes up to 16 bytes of memory for each pixel (WebP; see ``soundness.py``). What is below
:data:`LARGE_PIXELS` is decoded on all cores at once. A larger one waits until no other thread of
this process holds one.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.passing import is_passing
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError

LARGE_PIXELS = 25_000_000
"""A picture with more pixels is large: a camera of 24 megapixels makes none."""

_lock = threading.Lock()


class _State(threading.local):
    may_wait = False
    holds = False


_state = _State()


@contextmanager
def one_large_at_a_time() -> Iterator[None]:
    """Around the decoding of one picture and what is made of it, in one of several threads."""
    _state.may_wait = True
    try:
        yield
    finally:
        _state.may_wait = False
        if _state.holds:
            _state.holds = False
            _lock.release()


def wait_for_turn(pixels: int) -> None:
    """Wait before a large picture is decoded; held until the end of the ``with`` block.

    Args:
        pixels: As the picture's header states them. Without a block around, none waits.
    """
    if pixels > LARGE_PIXELS and _state.may_wait and not _state.holds:
        _lock.acquire()
        _state.holds = True


Use = Callable[[int, NDArray[np.uint8]], None]
"""Called with (position, picture (height, width, 3)), from several threads at once."""

Tell = Callable[[int, int], None]
"""Called with (pictures done, pictures in all), from one thread."""

_CHUNK = 16


def decode_each(
    table: ExampleTable,
    short_side: int,
    use: Use,
    tell: Tell | None = None,
    *,
    whatever: bool = False,
) -> dict[int, DataError]:
    """Decode each picture of a table once and hand it to ``use``.

    Args:
        table: The examples.
        short_side: Pixels that a picture's short side needs to keep.
        use: Called for each picture, in no order; what it raises ends the decoding.
        tell: Called now and then with the progress.
        whatever: Whatever a source raises over a picture is that picture's fault, also what
            no source should raise, unless the machine is at fault.

    Returns:
        Position -> error of each picture that is missing or damaged, by position.

    Raises:
        PassingFault: if the machine lacks memory, file descriptors or its disk: that is no
            picture's fault.
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
            # The picture is forgotten within the block, before the next large one is decoded.
            with one_large_at_a_time():
                decode_one(position)
        return stop - start

    done = 0
    # Threads suffice: Pillow lets go of the interpreter while it decodes and resizes.
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
    """The cores that this process may use, fewer than the machine's if it is pinned."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
