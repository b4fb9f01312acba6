"""Memory that servers hand back: kept while messages pass, returned once they have passed.

By default glibc gives each thread an arena of its own and keeps what large messages took: a
SuperLink among hostile sites rose from 110 to 277 MB. Returning each large block at once keeps that
memory low, but the kernel then clears every megabyte of every message anew, which took a fifth of
the processor time of a round of large messages. So these processes have two arenas, which keep what
they have, and return it all every few seconds in which they worked.

Not for processes that compute. Of no effect with another C library. Source: mallopt(3) and
malloc_trim(3), https://man7.org/linux/man-pages/man3/malloc_trim.3.html.
"""

import ctypes
import time
from collections.abc import Callable

HEAP_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "134217728",
}
"""Environment of these processes: blocks up to 32 MB (the most that glibc takes here) come from the
arenas, and 128 MB may lie free at the end of one."""
EVERY_S = 5.0
"""Interval between two returns, in seconds."""
WORKED_S = 0.05
"""Processor time, in seconds, since the last return, below which nothing is worth returning."""


class Heap:
    """Returns this process's free memory to the system from time to time.

    Args:
        trim: Returns it; by default glibc's ``malloc_trim``.
    """

    def __init__(self, trim: Callable[[], None] | None = None) -> None:
        self._trim = trim or _found()
        self._at, self._worked = time.monotonic(), time.process_time()

    def give_back(self) -> None:
        """Return it if that is due; call this often."""
        now, worked = time.monotonic(), time.process_time()
        if now - self._at < EVERY_S or worked - self._worked < WORKED_S:
            return
        self._trim()
        self._at, self._worked = now, time.process_time()


def _found() -> Callable[[], None]:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return (lambda: None) if trim is None else (lambda: trim(0))
