"""Work on large tensors, piece by piece on all cores that this process may use.

Hashing and NumPy's loops let go of Python's lock, so threads are enough. What is made of the
pieces is put together in their order: the number of cores changes no bit of it.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

WORTH_THREADS = 4_000_000
"""Bytes below which starting threads costs more than they save."""

PIECE = 1 << 20
"""Values of a tensor that are one piece of work."""

_taken: list[int] = []
_lock = threading.Lock()

Item = TypeVar("Item")
Result = TypeVar("Result")


def on_all_cores(
    function: Callable[[Item], Result], items: Sequence[Item], nbytes: int
) -> list[Result]:
    """``function`` of each item, in the order of the items.

    Args:
        function: May run in any thread.
        items: Largest first, where they differ much: threads then end together.
        nbytes: What they come to; little is done in this thread alone.
    """
    cores = spare()
    if cores == 1 or nbytes < WORTH_THREADS or len(items) < 2:
        return [function(item) for item in items]
    # Threads of its own each time: they would not outlive a fork.
    with ThreadPoolExecutor(min(cores, len(items))) as pool:
        return list(pool.map(function, items))


def pieces(sizes: Iterable[tuple[str, int]]) -> list[tuple[str, slice]]:
    """(name, values) of every piece of tensors of so many values, in their order."""
    return [
        (name, slice(start, min(start + PIECE, size)))
        for name, size in sizes
        for start in range(0, size, PIECE)
    ]


@contextmanager
def core_taken() -> Iterator[None]:
    """While it lasts, work on all cores leaves one to the thread that is in here.

    More threads than cores share the same caches and wait for Python's lock in turns: on two
    cores three are slower than two.
    """
    with _lock:
        _taken.append(threading.get_ident())
    try:
        yield
    finally:
        with _lock:
            _taken.remove(threading.get_ident())


def spare() -> int:
    """Cores for work on large tensors now; at least one."""
    return max(available() - len(_taken), 1)


def available() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
