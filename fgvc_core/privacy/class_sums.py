"""Closed-form releases: sums of bounded vectors, per class or over all, to which noise is added.

The privacy bound depends on the order: vectors are first completed (projected, scaled), then summed
within the unit, then the unit is clipped; after that there are only sums over units and noise.
Whitening *after* clipping would increase a unit's influence.
"""

import numpy as np
from numpy.typing import NDArray

from fgvc_core.privacy.noise import make_grid
from fgvc_core.privacy.sampling import clip_scales
from fgvc_core.privacy.whitening import first_bound, first_length, first_rows

BLOCK = 4096
"""Cells that are summed before their sum is added to the total; see
:data:`~fgvc_core.privacy.noise.SUMMING`."""


UNITS = 256
"""Units whose rows with a scatter are held at once; their sum is added to the total."""


def unit_vectors(vectors_NP: NDArray[np.floating]) -> NDArray[np.float64]:
    """float64 (N, P): rows of length 1, or 0 for a row that is zero or not finite."""
    values_NP = vectors_NP.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths_N1 = np.linalg.norm(values_NP, axis=1, keepdims=True)
    sound_N1 = np.isfinite(lengths_N1) & (lengths_N1 > 1e-12)
    scaled_NP = values_NP / np.where(sound_N1, lengths_N1, 1.0)
    return np.where(sound_N1, scaled_NP, 0.0)


def clipped_class_sums(
    vectors_NP: NDArray[np.float64],
    labels_N: NDArray[np.int64],
    units_N: NDArray[np.int64],
    num_classes: int,
    bound: float,
) -> NDArray[np.float64]:
    """float64 (K, P): class sums; the contribution of each unit has norm ``bound`` at most.

    Args:
        vectors_NP: Row i is added to row ``labels_N[i]``.
        labels_N: int64, 0 to K - 1.
        units_N: int64, units numbered from 0.
        num_classes: K.
        bound: Largest Frobenius norm of one unit's contribution.
    """
    sums_KP = np.zeros((num_classes, vectors_NP.shape[1]))
    if not len(labels_N):
        return sums_KP
    # Sum within unit and class first: a norm of separate rows would miss that they may be aligned.
    cells_N = units_N * num_classes + labels_N
    cells_M, index_N = np.unique(cells_N, return_inverse=True)
    parts_MP = np.zeros((len(cells_M), vectors_NP.shape[1]))
    np.add.at(parts_MP, index_N, vectors_NP)
    units_M, labels_M = np.divmod(cells_M, num_classes)
    squares_U = np.zeros(int(units_N.max()) + 1)
    np.add.at(squares_U, units_M, (parts_MP**2).sum(axis=1))
    scales_U = clip_scales(squares_U, bound)
    kept_M = np.flatnonzero(scales_U[units_M] > 0)
    for start in range(0, len(kept_M), BLOCK):
        some = kept_M[start : start + BLOCK]
        block_KP = np.zeros_like(sums_KP)
        np.add.at(block_KP, labels_M[some], parts_MP[some] * scales_U[units_M[some]][:, None])
        sums_KP += block_KP
    return sums_KP


def centre_sum(
    vectors_NP: NDArray[np.float64], units_N: NDArray[np.int64], weight: float = 0.0
) -> NDArray[np.float64]:
    """float64 (Q,): the sum of all vectors, and with a weight of their scatters, without noise.

    Each unit is clipped to the length of one picture's row (:mod:`.whitening`). Rows with a scatter
    are long (P (P + 3) / 2 values), so at most ``UNITS`` of them are held at once.
    """
    bound = first_bound(weight)
    sum_Q = np.zeros(first_length(vectors_NP.shape[1], weight))
    units_U, unit_N = np.unique(units_N, return_inverse=True)
    order_N = np.argsort(unit_N, kind="stable")
    starts_U = np.searchsorted(unit_N[order_N], np.arange(len(units_U) + 1))
    for first in range(0, len(units_U), UNITS):
        last = min(first + UNITS, len(units_U))
        parts_VQ = np.zeros((last - first, len(sum_Q)))
        for start in range(starts_U[first], starts_U[last], UNITS):
            some = order_N[start : min(start + UNITS, starts_U[last])]
            np.add.at(parts_VQ, unit_N[some] - first, first_rows(vectors_NP[some], weight))
        each_V = np.arange(last - first)
        sum_Q += clipped_class_sums(parts_VQ, np.zeros_like(each_V), each_V, 1, bound)[0]
    return sum_Q


def counted_sums(
    vectors_NP: NDArray[np.float64],
    labels_N: NDArray[np.int64],
    units_N: NDArray[np.int64],
    num_classes: int,
    count_coordinate: float,
) -> NDArray[np.float64]:
    """float64 (K, P + 1): class sums before noise; the last column is count times the constant.

    The clipping bound is the norm of a vector of length 1 with its constant, so a unit of one
    picture is never clipped.
    """
    constant_N1 = np.full((len(labels_N), 1), count_coordinate)
    rows_NQ = np.concatenate([vectors_NP, constant_N1], axis=1)
    return clipped_class_sums(rows_NQ, labels_N, units_N, num_classes, sums_bound(count_coordinate))


def sums_bound(count_coordinate: float) -> float:
    """Norm of a vector of length 1 with its constant."""
    return float(np.hypot(1.0, count_coordinate))


def sums_deviation(
    num_classes: int,
    directions: int,
    count_coordinate: float,
    noise_multiplier: float,
) -> float:
    """Standard deviation of one site's noise on each released value, as the receiver computes it.

    Args:
        num_classes: K.
        directions: P.
        count_coordinate: The constant beside each vector.
        noise_multiplier: Of the noise of each site.
    """
    size = num_classes * (directions + 1)
    return make_grid(sums_bound(count_coordinate), size, noise_multiplier).deviation
