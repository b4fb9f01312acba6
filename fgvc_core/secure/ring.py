"""Values as integers modulo 2**32 or 2**64, in which masks are uniform and sums exact.

A value becomes a number of steps, clamped so that the sum over the largest federation cannot leave
the signed range: an honest sum never wraps. Clamping moves two values closer to each other, never
apart, so a bound on how far one unit moves a value still holds.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fgvc_core.privacy.noise import largest_draw
from fgvc_core.secure.rules import MOST_SITES

Bits = Literal[32, 64]

MOST_WIDE = 1 << 20
"""Most values for which 64-bit words are sent whatever they hold; larger updates get 32 bits."""


def bits_for(size: int, levels: int) -> Bits:
    """Width of the ring for ``size`` values with noise of ``levels`` draws (0: no noise)."""
    return 64 if size <= MOST_WIDE or levels > 2 else 32


def word(bits: Bits) -> type[Any]:
    """The dtype of a ring's words."""
    return np.uint64 if bits == 64 else np.uint32


def most_steps(bits: Bits, levels: int) -> int:
    """Largest magnitude of one site's value in steps, with room for its noise."""
    tail = largest_draw(levels) if levels else 0
    return int((2 ** (bits - 1) - 1) // MOST_SITES - tail)


def to_steps(values: NDArray[np.float64], step: float, most: int) -> NDArray[np.int64]:
    """int64 (N,): values in whole steps, at most ``most`` in magnitude.

    Args:
        values: Finite, any shape.
        step: Size of a step, above 0.
        most: From :func:`most_steps`.
    """
    # Clipped as floats first, because a larger one has no integer; then exactly.
    steps = np.clip(np.rint(values.reshape(-1) / step), -(2.0**62), 2.0**62)
    return np.clip(steps.astype(np.int64), -most, most)


def to_ring(steps: NDArray[np.int64], bits: Bits) -> NDArray[Any]:
    """(N,) words: the integers modulo 2**bits."""
    return steps.astype(np.uint64).astype(word(bits))


def from_ring(words: NDArray[Any], step: float) -> NDArray[np.float64]:
    """float64 (N,): the opened sum of words, as signed integers times the step."""
    signed = words.view(np.int64 if words.dtype == np.uint64 else np.int32)
    return signed.astype(np.float64) * step
