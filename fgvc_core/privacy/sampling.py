"""Protected units of differential privacy, and Poisson sampling of units for each step.

A unit is an image or a subject. Byte-equal pictures belong to one unit, whatever their names: a
picture under two names or two subjects would otherwise be charged once and contribute twice. Adding
or removing a unit therefore includes its copies.

Amplification by sampling requires unpredictable draws: randomness comes from the operating system,
nothing here accepts a seed, and no draw is ever logged.
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
    """(count,) random words of a dtype (``np.uint16``, ``np.uint64``) from the operating system."""
    return np.frombuffer(os.urandom(np.dtype(kind).itemsize * count), dtype=kind)


def draw_units(units: int, rate: float) -> NDArray[np.int64]:
    """Poisson sampling: each unit independently, with exactly the given probability.

    128 random bits are compared with ``rate``, so the rate in the accounting is exactly the rate in
    use.

    Args:
        units: U, the number of units.
        rate: Probability of each, 0 to 1.

    Returns:
        int64, sorted positions of the drawn units; often empty if there are few units.
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

    The recipe's seed is never used: with known draws, the views of one unit would reveal which
    units came before it.
    """
    return int.from_bytes(os.urandom(8), "big") >> 1


def protected_units(
    kind: Unit, contents: Sequence[bytes], subjects: Sequence[str]
) -> NDArray[np.int64]:
    """The unit of each example.

    Args:
        kind: ``image`` or ``subject``.
        contents: N content digests; equal pictures have equal digests.
        subjects: N subject ids; used for ``subject`` only.

    Returns:
        int64 (N,), units numbered from 0 in order of their first example. Subjects that share a
        picture are one unit.
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
    """N names, equal within a unit: the first of its subjects in alphabetical order.

    A unit's name depends only on its own pictures, so no other unit can move it to the other side
    of a split.
    """
    first: dict[int, str] = {}
    for unit, subject in zip(units_N.tolist(), subjects, strict=True):
        first[unit] = min(first.get(unit, subject), subject)
    return [first[unit] for unit in units_N.tolist()]


def clip_scales(squares_U: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """float64 (U,): factors that reduce each unit's norm to the bound.

    The factor of a unit with a non-finite norm is 0: whether the sum is finite must not depend on
    one unit.
    """
    norms_U = np.sqrt(squares_U)
    scales_U = np.divide(bound, norms_U, out=np.ones_like(norms_U), where=norms_U > bound)
    return np.where(np.isfinite(norms_U), scales_U, 0.0)
