"""Whitening of vectors in the public subspace by a private scatter.

The scatter rides in the message of the center, so that nothing else is asked. Of a unit vector v it
is v v^T, whose Frobenius norm is |v|**2 = 1: written as its upper triangle with the entries off the
diagonal times the root of two, its Euclidean norm is that Frobenius norm. A row of the message is
(v, w v v^T), at most sqrt(1 + w**2) long; a unit's rows are added and clipped to that bound, and
the same noise lies on every value. Taking the root of two off again leaves less of it off the
diagonal.

With w**2 = scatter_share / centre_share one release at the noise of both shares together costs, and
adds to either part the noise of, two releases at the noise of each share alone: the noise on v is
sigma sqrt(1 + w**2) / sqrt(c + s) = sigma / sqrt(c), that on v v^T the same over w, sigma /
sqrt(s).

What the server makes of it is post-processing. What a site does with the whitening that it is sent
comes before its vectors are scaled to length 1 and clipped: whatever the matrix is, a unit moves
the class sums by their bound at most.
"""

import math

import numpy as np
from numpy.typing import NDArray

from fgvc_core.privacy.settings import PrivacySettings

POWER = 0.5
"""Full whitening is 1. Between the classes' differences, which whitening also shrinks, and the
spread within them, half was as good as all at every epsilon."""

_LEAST = 1e-9
_ROWS = 256


def scatter_weight(privacy: PrivacySettings) -> float:
    """w, the weight of the scatter beside the vector; 0: no scatter is released."""
    return math.sqrt(privacy.scatter_share / privacy.centre_share)


def first_length(directions: int, weight: float) -> int:
    """Number of values in the first message: P, and with a scatter P (P + 1) / 2 more."""
    return directions + (directions * (directions + 1) // 2 if weight else 0)


def first_bound(weight: float) -> float:
    """Largest length of one unit's part in the first message's sum."""
    return math.hypot(1.0, weight)


def first_rows(vectors_NP: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """float64 (N, Q): each vector, with a weight above 0 followed by its scatter.

    Args:
        vectors_NP: Of length at most 1.
        weight: w.
    """
    if not weight:
        return vectors_NP
    rows, columns = np.triu_indices(vectors_NP.shape[1])
    root_Q = np.where(rows == columns, 1.0, math.sqrt(2.0))
    scatter_NQ = vectors_NP[:, rows] * vectors_NP[:, columns] * (weight * root_Q)
    return np.concatenate([vectors_NP, scatter_NQ], axis=1)


def first_mean(vectors_NP: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """float64 (Q,): the mean of the rows, without clipping or noise, a block of rows at a time."""
    sum_Q = np.zeros(first_length(vectors_NP.shape[1], weight))
    for start in range(0, len(vectors_NP), _ROWS):
        sum_Q += first_rows(vectors_NP[start : start + _ROWS], weight).sum(axis=0)
    return sum_Q / len(vectors_NP)


def first_tensors(
    mean_Q: NDArray[np.float64], directions: int, weight: float, deviation: float
) -> dict[str, NDArray[np.float32]]:
    """The head's center, and with a scatter its whitening, by the names of their tensors.

    Eigenvalues are raised by the largest that the noise alone would show (2 sqrt(P) times the
    deviation of an entry off the diagonal: Wigner's semicircle), so that at much noise the
    whitening is the identity, up to scale.

    Args:
        mean_Q: Noisy sum of the sites' rows over their units.
        directions: P.
        weight: w.
        deviation: Standard deviation of the noise on each value of ``mean_Q``.
    """
    centre_P = mean_Q[:directions]
    tensors = {"head.centre": centre_P.astype(np.float32)}
    if not weight:
        return tensors
    rows, columns = np.triu_indices(directions)
    off = rows != columns
    scatter_PP = np.zeros((directions, directions))
    scatter_PP[rows, columns] = mean_Q[directions:] / weight / np.where(off, math.sqrt(2.0), 1.0)
    scatter_PP += np.triu(scatter_PP, 1).T
    values_P, axes_PP = np.linalg.eigh(scatter_PP - np.outer(centre_P, centre_P))
    noise = 2 * math.sqrt(directions) * deviation / weight / math.sqrt(2.0)
    values_P = np.maximum(values_P, 0.0) + noise + _LEAST
    values_P /= values_P.mean()
    whitening_PP = (axes_PP * values_P ** (-POWER / 2)) @ axes_PP.T
    return {**tensors, "head.whitening": whitening_PP.astype(np.float32)}
