"""Protected units, and which of them a step sees.

What is protected: all pictures that stand or fall together.

A unit is an image or a subject. Byte-equal pictures are one unit, whatever they are
called: under two names or two subjects a picture would otherwise be paid for once
and be there twice. Adding or removing one unit therefore takes its copies along.

Which units a step sees: independent draws with the operating system's own randomness.

Amplification by sampling is void if the draws can be predicted, so nothing here takes
a seed, and no draw is ever logged.
"""

import os
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fgvc_core.privacy.settings import Unit

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


def protected_units(
    kind: Unit, contents: Sequence[bytes], subjects: Sequence[str]
) -> NDArray[np.int64]:
    """Which unit each example belongs to.

    Args:
        kind: ``image`` or ``subject``.
        contents: N content digests; equal pictures have equal digests.
        subjects: N subject ids; read for ``subject`` alone.

    Returns:
        int64 (N,), units numbered from 0 in order of their first example. Subjects that
        share a picture are one unit.
    """
    parent = list(range(len(contents)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    groupings: list[Sequence[object]] = [contents]
    if kind == "subject":
        groupings.append(subjects)
    for grouping in groupings:
        first: dict[object, int] = {}
        for position, value in enumerate(grouping):
            parent[root(position)] = root(first.setdefault(value, position))
    numbers: dict[int, int] = {}
    return np.array(
        [numbers.setdefault(root(i), len(numbers)) for i in range(len(parent))], dtype=np.int64
    )


def unit_names(units_N: NDArray[np.int64], subjects: Sequence[str]) -> list[str]:
    """N names, equal within a unit: the first of its own subjects in the order of letters.

    A unit's name follows from its own pictures, so that no other unit can move it to the
    other side of a split.
    """
    first: dict[int, str] = {}
    for unit, subject in zip(units_N.tolist(), subjects, strict=True):
        first[unit] = min(first.get(unit, subject), subject)
    return [first[unit] for unit in units_N.tolist()]


def clip_scales(squares_U: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """float64 (U,): by what each unit's part is multiplied so that its norm is at most a bound.

    A unit whose norm is not finite gets 0: whether a sum is finite must not depend on
    one unit.
    """
    norms_U = np.sqrt(squares_U)
    scales_U = np.divide(bound, norms_U, out=np.ones_like(norms_U), where=norms_U > bound)
    return np.where(np.isfinite(norms_U), scales_U, 0.0)
