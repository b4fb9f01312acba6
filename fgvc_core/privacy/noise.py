"""Discrete Gaussian noise on a grid, which has no floating-point side channel.

Gaussian noise in floating point has gaps between its possible values, which reveal the value
beneath (Mironov 2012, https://doi.org/10.1145/2382196.2382264). Here, the value is rounded to an
integer multiple of a grid's step, and the noise is an integer multiple too, drawn from the discrete
Gaussian. Its Renyi and concentrated guarantees are those of the continuous one (Canonne, Kamath and
Steinke 2020, theorem 4 and corollary 9, https://arxiv.org/abs/2004.00010).

Sampling: a table holds the cumulative distribution of the discrete Gaussian with deviation 1024 to
128 bits; a draw compares random bits with it until they are decisive. The first 16 bits decide nine
of ten draws through a guide table (Chen and Asau 1974). Otherwise 48 more bits are drawn, and in
one of 10**14 cases another 64. Drawing only as many bits as needed does not change the
distribution, and takes a seventh of the time. Wider noise is a sum of such draws in base 128, which
is a discrete Gaussian up to a total variation below 2**-80 per draw (Micciancio and Walter 2017,
section 3, https://eprint.iacr.org/2017/259), as 1024 / 128 is well above the smoothing parameter of
the integers. All bits come from the operating system; in a masked sum, a key drawn from it yields
them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import ConfigurationError
from fgvc_core.privacy.sampling import random_bits

BASE_DEVIATION = 1024
RADIX = 128
_TAIL = 14
"""Range of the table in deviations; the probability beyond it is below 2**-140."""

LARGEST_INFLATION = 0.01
"""The grid is refined while rounding adds more than this share to the sensitivity."""

SUMMING = 2.0**-20
"""Share added to the sensitivity for float64 rounding in the sum over clipped units.

If a sum has n terms per coordinate and the total length of all terms is S bounds, its error is at
most n * S * 2**-53 bounds (Higham 2002, section 4.2), and two neighboring sums differ by twice
that. Adding U units one after another: n = S = U, which covers 65,536 units. In blocks of b: n = b
+ U / b, which covers 900,000 for class sums (b = 4096) and for the centre (b = 256). Pictures of
several units at once, in the closed form: n = 1024 and S = 64 * U, which again covers 65,536
units."""

_MOST_LEVELS = 4
_CHUNK = 1 << 16
_GUIDE_BITS = 16


@dataclass(frozen=True)
class Grid:
    """The grid of one release.

    Attributes:
        step: Distance between neighboring points, in the units of the released values.
        levels: Number of draws summed for one value, 1 to 4.
        sensitivity: Largest L2 distance by which one unit can move the *rounded* values, in their
            units.
    """

    step: float
    levels: int
    sensitivity: float

    @property
    def deviation(self) -> float:
        """Standard deviation of one site's noise, in the units of the released values."""
        return self.step * _deviation(self.levels)


def make_grid(bound: float, dimensions: int, noise_multiplier: float, sharers: int = 1) -> Grid:
    """The grid for a sum over units that are clipped to a bound.

    Rounding moves each coordinate by at most half a step, so two neighboring sums are at most
    ``bound + step * sqrt(dimensions)`` apart afterwards. The standard deviation of the noise is
    this sensitivity times the noise multiplier.

    Args:
        bound: Largest L2 norm of one unit's contribution.
        dimensions: Number of values released together.
        noise_multiplier: Above 0.
        sharers: Number of sites whose draws together are this noise, for one sum over all of them;
            each draws one part of the variance. A unit is at one site, so one rounding counts.

    Raises:
        ConfigurationError: if the noise and the number of values require a finer grid than the
            finest.
    """
    for levels in range(1, _MOST_LEVELS + 1):
        deviation = _deviation(levels) * math.sqrt(sharers)
        inflation = noise_multiplier * math.sqrt(dimensions) / deviation
        if inflation <= LARGEST_INFLATION:
            break
    if inflation > 0.5:
        raise ConfigurationError(
            f"A noise multiplier of {noise_multiplier:g} on {dimensions:,} values is too much.",
            why="The grid on which they are released would be coarser than the values.",
            remedy="Ask for a larger privacy.epsilon, or train less of the model ([model] train).",
        )
    # step * deviation = noise_multiplier * sensitivity, where the sensitivity includes the rounding
    # of both sums: bound * (1 + SUMMING) + step * sqrt(dimensions).
    sensitivity = bound * (1 + SUMMING) / (1 - inflation)
    return Grid(noise_multiplier * sensitivity / deviation, levels, sensitivity)


def release(values: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Round to the grid, add noise, and return the noisy points as float64.

    Args:
        values: Finite, any shape: a sum over units that are each within the grid's bound.
        grid: A grid from :func:`make_grid`.
    """
    flat = values.reshape(-1)
    noisy = np.empty(flat.size, dtype=np.float64)
    # In chunks, so that temporaries stay small and in the cache.
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK]
        points = np.rint(piece / grid.step).astype(np.int64)
        points += discrete_gaussian(piece.size, grid.levels)
        np.multiply(points, grid.step, out=noisy[start : start + _CHUNK])
    return noisy.reshape(values.shape)


Words = Callable[[int, type[Any]], NDArray[Any]]
"""(count, ``np.uint16`` or ``np.uint64``) -> (count,) random words."""


def discrete_gaussian(count: int, levels: int, words: Words | None = None) -> NDArray[np.int64]:
    """int64 (count,): draws from the discrete Gaussian with the deviation of ``levels``.

    Args:
        count: Number of draws.
        levels: Of the grid.
        words: Source of randomness; by default the operating system. Only a masked sum passes
            another one: the stream of a key from the operating system, so that a request that is
            repeated gets the same bytes.
    """
    total = np.zeros(count, dtype=np.int64)
    for _ in range(levels):
        total *= RADIX
        total += _base_draws(count, words or random_bits)
    return total


def largest_draw(levels: int) -> int:
    """Largest magnitude that a draw of ``levels`` can have."""
    return _TAIL * BASE_DEVIATION * sum(RADIX**level for level in range(levels))


def _deviation(levels: int) -> float:
    return BASE_DEVIATION * math.sqrt(sum(RADIX ** (2 * level) for level in range(levels)))


def _base_draws(count: int, words_of: Words | None = None) -> NDArray[np.int64]:
    table, words_of = _table(), words_of or random_bits
    first = words_of(count, np.uint16)
    index = table.guide[first].astype(np.int64)
    # Draws that 16 bits leave open use 64 bits; those that equal a table entry then use 128.
    unsure = np.flatnonzero(index < 0)
    rest = words_of(len(unsure), np.uint64) >> np.uint64(_GUIDE_BITS)
    words = (first[unsure].astype(np.uint64) << np.uint64(64 - _GUIDE_BITS)) | rest
    found = np.searchsorted(table.high, words, side="right")
    # With side="right", entries equal to the word are counted too.
    for at in np.flatnonzero((found > 0) & (table.high[np.maximum(found - 1, 0)] == words)):
        found[at] = _decide(table, int(words[at]), words_of)
    index[unsure] = found
    index -= table.radius
    return index


@dataclass(frozen=True)
class _Table:
    """Cumulative distribution times 2**128.

    Attributes:
        exact: All entries in full, one per border between two draws.
        high: The upper 64 bits of each.
        guide: int16 (2**16,), index of the draw that the first 16 bits decide, or -1.
        radius: Index of the draw 0.
    """

    exact: tuple[int, ...]
    high: NDArray[np.uint64]
    guide: NDArray[np.int16]
    radius: int


def _decide(table: _Table, word: int, words_of: Words) -> int:
    from bisect import bisect_right

    second = int(words_of(1, np.uint64)[0])
    return min(bisect_right(table.exact, (word << 64) | second), 2 * table.radius)


@lru_cache(maxsize=1)
def _table() -> _Table:
    """P(X <= k) for k = -radius .. radius - 1; a draw's index counts the entries up to it."""
    # Fixed-point arithmetic with Python's integers: e**-(k**2 / 2 s**2) takes one multiplication
    # per step, since the ratio of neighbors changes by a constant factor.
    bits, guard = 128, 64
    one = 1 << (bits + guard)
    radius = _TAIL * BASE_DEVIATION
    ratio_step = _exp_neg(2 * BASE_DEVIATION**2, 2, one)
    weight, ratio = one, _exp_neg(2 * BASE_DEVIATION**2, 1, one)
    half = [weight]
    for _ in range(radius):
        weight = weight * ratio // one
        ratio = ratio * ratio_step // one
        half.append(weight)
    weights = half[:0:-1] + half
    total = sum(weights)
    exact, running = [], 0
    for value in weights[:-1]:
        running += value
        exact.append((running << bits) // total)
    high = np.array([value >> 64 for value in exact], dtype=np.uint64)
    return _Table(tuple(exact), high, _guide(high), radius)


def _guide(high: NDArray[np.uint64]) -> NDArray[np.int16]:
    starts = np.arange(1 << _GUIDE_BITS, dtype=np.uint64) << np.uint64(64 - _GUIDE_BITS)
    ends = starts | np.uint64((1 << (64 - _GUIDE_BITS)) - 1)
    # side="left": a border equal to the first word needs further bits.
    low = np.searchsorted(high, starts, side="left")
    return np.where(low == np.searchsorted(high, ends, side="right"), low, -1).astype(np.int16)


def _exp_neg(divisor: int, times: int, one: int) -> int:
    """e**-(times / divisor) in fixed point, by its Taylor series."""
    size, total, k = one, one, 0
    while size:
        k += 1
        size = size * times // (divisor * k)
        total += -size if k % 2 else size
    return total
