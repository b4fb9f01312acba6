"""Very large pictures are decoded one at a time, so that memory does not grow with the cores.

Decoding takes up to 16 bytes of memory for each pixel (WebP; see ``soundness.py``). What is below
:data:`LARGE_PIXELS` is decoded on all cores at once. A larger one waits until no other thread of
this process holds one.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

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
