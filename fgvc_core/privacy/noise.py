"""Discrete Gaussian noise on a grid: what floating point cannot betray.

A Gaussian drawn in floating point leaves holes between the numbers it can give, and they
tell the value beneath (Mironov 2012, https://doi.org/10.1145/2382196.2382264). Here the
value is an integer multiple of a grid's step before noise is added, and so is the noise,
drawn from the discrete Gaussian, which has the same Renyi and concentrated guarantee as
the continuous one (Canonne, Kamath and Steinke 2020, theorem 4 and corollary 9,
https://arxiv.org/abs/2004.00010).

How it is drawn: one table of the cumulative distribution of the discrete Gaussian with
deviation 1024, to 128 bits; a draw compares 64 random bits with it and, in the one case in
10**15 where these do not decide, 64 more. Wider noise is a sum of such draws in base 128,
which is again a discrete Gaussian but for a total variation below 2**-80 a draw (Micciancio
and Walter 2017, section 3, https://eprint.iacr.org/2017/259), as 1024 / 128 is well above
the smoothing parameter of the integers. All bits come from the operating system.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fgvc_core.privacy.sampling import random_words

BASE_DEVIATION = 1024
RADIX = 128
_TAIL = 14
"""Deviations that the table reaches to; beyond lies less than 2**-140."""

LARGEST_INFLATION = 0.01
"""The grid is made finer while rounding to it adds more than this share to the sensitivity."""


@dataclass(frozen=True)
class Grid:
    """The grid of one release.

    Attributes:
        step: Distance of neighbouring points, in the units of the released values.
        levels: Draws summed for one value, 1 to 4.
        sensitivity: Largest L2 distance, in grid steps' units times ``step``, that one unit
            can move the *rounded* values.
    """

    step: float
    levels: int
    sensitivity: float

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise, in the units of the released values."""
        return self.step * _deviation(self.levels)


def make_grid(bound: float, dimensions: int, noise_multiplier: float) -> Grid:
    """The grid for a sum whose units are clipped to a bound.

    Rounding moves each coordinate by at most half a step; two neighbouring sums are thus
    at most ``bound + step * sqrt(dimensions)`` apart after it. The noise is that times
    the noise multiplier.

    Args:
        bound: Largest L2 norm of one unit's part.
        dimensions: Values released together.
        noise_multiplier: Above 0.
    """
    for levels in range(1, 5):
        deviation = _deviation(levels)
        inflation = noise_multiplier * math.sqrt(dimensions) / deviation
        if inflation <= LARGEST_INFLATION or levels == 4:
            break
    # step * deviation = noise_multiplier * (bound + step * sqrt(dimensions)); the last factor
    # covers sums in float64, whose error is some 1e-12 of the bound.
    sensitivity = bound / (1 - inflation) * (1 + 1e-9)
    return Grid(noise_multiplier * sensitivity / deviation, levels, sensitivity)


def release(values: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Round to the grid, add noise, and return the noisy points as float64.

    Args:
        values: Finite, any shape: a sum over units each within the grid's bound.
        grid: Of :func:`make_grid`.
    """
    points = np.rint(values / grid.step).astype(np.int64)
    noise = discrete_gaussian(values.size, grid.levels).reshape(values.shape)
    noisy: NDArray[np.float64] = np.multiply(points + noise, grid.step, dtype=np.float64)
    return noisy


def discrete_gaussian(count: int, levels: int) -> NDArray[np.int64]:
    """int64 (count,) draws with the deviation of ``levels``."""
    total = np.zeros(count, dtype=np.int64)
    for _ in range(levels):
        total = total * RADIX + _base_draws(count)
    return total


def _deviation(levels: int) -> float:
    return BASE_DEVIATION * math.sqrt(sum(RADIX ** (2 * level) for level in range(levels)))


def _base_draws(count: int) -> NDArray[np.int64]:
    table = _table()
    words = random_words(count)
    index = np.searchsorted(table.high, words, side="right")
    # searchsorted counts the entries that are smaller or equal; where one is equal, the
    # first 64 bits have not decided.
    tied = np.flatnonzero((index > 0) & (table.high[np.maximum(index - 1, 0)] == words))
    for position in tied:
        index[position] = _decide(table, int(words[position]))
    return index.astype(np.int64) - table.radius


@dataclass(frozen=True)
class _Table:
    """Cumulative distribution times 2**128: in full, and its upper words."""

    exact: tuple[int, ...]
    high: NDArray[np.uint64]
    radius: int


def _decide(table: _Table, word: int) -> int:
    from bisect import bisect_right

    second = int(random_words(1)[0])
    return min(bisect_right(table.exact, (word << 64) | second), 2 * table.radius)


@lru_cache(maxsize=1)
def _table() -> _Table:
    """P(X <= k) for k = -radius .. radius - 1: an entry counts the draws that lie above it."""
    # Fixed-point arithmetic with Python's integers: e**-(k**2 / 2 s**2) by one multiplication
    # a step, since the ratio of neighbours changes by a constant factor.
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
    return _Table(tuple(exact), high, radius)


def _exp_neg(divisor: int, times: int, one: int) -> int:
    """e**-(times / divisor) in fixed point, by its series."""
    size, total, k = one, one, 0
    while size:
        k += 1
        size = size * times // (divisor * k)
        total += -size if k % 2 else size
    return total
