"""Which units a step sees: independent draws with the operating system's own randomness.

Amplification by sampling is void if the draws can be predicted, so nothing here takes
a seed, and no draw is ever logged.
"""

import os
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_WORD = 1 << 64
_Bits = TypeVar("_Bits", np.uint16, np.uint64)


def random_bits(count: int, kind: type[_Bits]) -> NDArray[_Bits]:
    """(count,) words of a kind (``np.uint16``, ``np.uint64``) from the operating system."""
    return np.frombuffer(os.urandom(np.dtype(kind).itemsize * count), dtype=kind)


def draw_units(units: int, rate: float) -> NDArray[np.int64]:
    """Poisson sampling: each unit independently, with exactly the given probability.

    Every bit of ``rate`` counts: 128 random bits are compared with it, so that the rate
    that is accounted is the rate that was used.

    Args:
        units: U, how many there are.
        rate: Probability of each, 0 to 1.

    Returns:
        int64, sorted positions of those drawn; often none for few units.
    """
    if rate >= 1.0:
        return np.arange(units, dtype=np.int64)
    threshold = int(Fraction(rate) * _WORD * _WORD)
    high, low = divmod(threshold, _WORD)
    first, second = random_bits(units, np.uint64), random_bits(units, np.uint64)
    drawn = (first < np.uint64(high)) | ((first == np.uint64(high)) & (second < np.uint64(low)))
    return np.flatnonzero(drawn).astype(np.int64)


def fresh_seed() -> int:
    """A seed (0 to 2**63 - 1) from the operating system, for views of private pictures.

    Never the recipe's: with known draws one unit's views would tell who came before it.
    """
    return int.from_bytes(os.urandom(8), "big") >> 1
