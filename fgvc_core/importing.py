"""Importing much at once: no garbage is looked for meanwhile, nor later among what was imported.

PyTorch and timm bring half a million objects, nearly all of which stay. Python's collector looks
through them again and again as they come, which takes a fifth of the time of the imports.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import without looking for garbage, and leave out of later looks what is there at the end.

    Forked processes then also share its memory longer: a look writes to every object that it passes
    (https://docs.python.org/3/library/gc.html#gc.freeze).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
