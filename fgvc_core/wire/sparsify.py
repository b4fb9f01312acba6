"""The largest values of a tensor and where they are.

Top-k sparsification (Aji and Heafield 2017, https://arxiv.org/abs/1704.05021). What is left
out is not lost: the sender adds it to its next update (error feedback, Stich et al. 2018,
https://arxiv.org/abs/1809.07599), see :mod:`fgvc_core.wire.encode`.
"""

import numpy as np
from numpy.typing import NDArray

from fgvc_core.wire.arrays import Array


def kept(size: int, share: float) -> int:
    """How many of ``size`` values travel: the share, rounded up, and one at least.

    >>> kept(1000, 0.1), kept(3, 0.01), kept(0, 0.5)
    (100, 1, 0)
    """
    return min(size, max(1, int(np.ceil(size * share - 1e-9))))


def index_dtype(size: int) -> str:
    """The narrowest dtype that counts the values of a tensor."""
    return "uint16" if size <= 1 << 16 else "uint32"


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Ascending places of the ``count`` largest magnitudes of a flat tensor.

    Of equal magnitudes the ones in front are taken, so that a repeated round chooses alike.
    """
    if count >= values.size:
        return np.arange(values.size)
    magnitudes = np.abs(values)
    bound = np.partition(magnitudes, values.size - count)[values.size - count]
    above = np.flatnonzero(magnitudes > bound)
    level = np.flatnonzero(magnitudes == bound)[: count - above.size]
    return np.sort(np.concatenate([above, level]))


def first_fault(at: Array, size: int) -> str:
    """What makes a stranger's places unusable, or an empty text."""
    if not at.size:
        return ""
    if not np.all(at[1:] > at[:-1]):
        return "has places that are not ascending"
    if int(at[-1]) >= size:
        return f"has a place beyond its {size} values"
    return ""
