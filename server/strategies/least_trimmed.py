"""Least trimmed mean along the principal directions in which sites differ, against backdoors.

A backdoor is a small push in one direction about which honest sites have no preference. In single
values it is spread over thousands and stays within the honest spread, so a coordinate-wise median
lets it pass. In the principal directions of the sites' differences it is concentrated in few
coordinates, where the hostile sites stand apart.

In each coordinate, as many values are left out as sites may be hostile, on either side: the mean is
that of the n - h values with the least variance (least trimmed squares of a location, Rousseeuw and
Leroy 1987, "Robust Regression and Outlier Detection", section 4.2). A trimmed mean that leaves out
h at each end also drops h honest values opposite the hostile ones, and the rest is pulled toward
them a little in each round. Principal directions against hostile updates: Shejwalkar and Houmansadr
2021, section VI, which drops whole replies by one direction.
"""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fieldmark.server.strategies.spill import ShapedReplies

WIDEST = 2048
"""Most columns that are decomposed together: the cost grows with their cube. Wider tensors are
split."""

BYTES_A_NUMBER = 64
"""Bytes for one number of one reply: float32, its difference in float64, its coordinate, the
sorted values and their running sums."""


class Matrix(NamedTuple):
    """One tensor as a matrix: the first axis is the rows, all others are the columns."""

    start: int
    rows: int
    columns: int


def matrices(shapes: dict[str, tuple[int, ...]]) -> Iterator[Matrix]:
    """Position of each tensor among the flat values; a tensor with one axis has one column."""
    start = 0
    for shape in shapes.values():
        size = prod(shape)
        rows = shape[0] if shape else 1
        if size:
            yield Matrix(start, rows, size // rows)
        start += size


def least_trimmed(values_SN: NDArray[np.float64], left_out: int) -> NDArray[np.float64]:
    """float64 (N,): column-wise mean of the S - h values that lie closest together.

    Args:
        values_SN: Float64 (S, N): N numbers of S replies. Sorted in place.
        left_out: h, 0 to S - 1.
    """
    count = len(values_SN)
    kept = count - left_out
    values_SN.sort(axis=0)
    if not left_out:
        return np.asarray(values_SN.mean(axis=0))
    # Centered, because squares of large values would lose precision.
    middle_N = values_SN[count // 2].copy()
    best_N = np.full(values_SN.shape[1], np.inf)
    mean_N = np.zeros(values_SN.shape[1])
    for first in range(left_out + 1):
        window_KN = values_SN[first : first + kept] - middle_N
        window_N = window_KN.mean(axis=0)
        spread_N = np.square(window_KN - window_N).sum(axis=0)
        better_N = spread_N < best_N
        best_N[better_N], mean_N[better_N] = spread_N[better_N], window_N[better_N]
    return mean_N + middle_N


def combined(replies: ShapedReplies, left_out: int, limit_mb: float) -> NDArray[np.float32]:
    """float32 (size,): the rule over all tensors.

    Args:
        replies: S replies.
        left_out: h, how many of them may be hostile.
        limit_mb: Memory for rows and intermediate results, in MB (1e6 bytes).
    """
    flat = np.empty(replies.size, dtype=np.float32)
    chunk = max(int(limit_mb * 1e6 / (BYTES_A_NUMBER * len(replies))), 1)
    for matrix in matrices(replies.shapes):
        for first in range(0, matrix.columns, WIDEST):
            columns = slice(first, min(first + WIDEST, matrix.columns))
            _one(replies, matrix, columns, left_out, chunk, flat)
    return flat


def _one(
    replies: ShapedReplies,
    matrix: Matrix,
    columns: slice,
    left_out: int,
    chunk: int,
    flat: NDArray[np.float32],
) -> None:
    """Combine some columns of one tensor, all rows, and write them to ``flat``."""
    width = columns.stop - columns.start
    many = max(chunk // matrix.columns, 1)
    parts = [slice(r, min(r + many, matrix.rows)) for r in range(0, matrix.rows, many)]
    directions_DP = np.ones((1, 1))
    if width > 1:
        directions_DP = _directions(replies, matrix, columns, parts)
    target_RD = flat[matrix.start : matrix.start + matrix.rows * matrix.columns].reshape(
        matrix.rows, matrix.columns
    )
    for part in parts:
        middle_RD, apart_SRD = _apart(replies, matrix, part, columns)
        coordinates_SN = (apart_SRD @ directions_DP).reshape(len(replies), -1)
        found_RP = least_trimmed(coordinates_SN, left_out).reshape(-1, directions_DP.shape[1])
        target_RD[part, columns] = middle_RD + found_RP @ directions_DP.T


def _apart(
    replies: ShapedReplies, matrix: Matrix, part: slice, columns: slice
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """float64 (R, D), the median of each value, and (S, R, D), each reply's difference from it."""
    start = matrix.start + part.start * matrix.columns
    stop = matrix.start + part.stop * matrix.columns
    block_VS = replies.read(start, stop)
    values_SRD = block_VS.T.reshape(len(replies), part.stop - part.start, matrix.columns)
    chosen_SRD = values_SRD[:, :, columns].astype(np.float64)
    middle_RD = np.median(chosen_SRD, axis=0)
    chosen_SRD -= middle_RD
    return middle_RD, chosen_SRD


def _directions(
    replies: ShapedReplies, matrix: Matrix, columns: slice, parts: list[slice]
) -> NDArray[np.float64]:
    """float64 (D, P): orthonormal principal directions of all rows' differences."""
    width = columns.stop - columns.start
    if len(parts) == 1 and len(replies) * matrix.rows < width:
        # Fewer differences than columns: decompose within the space that they span, which is
        # cheaper.
        _, apart_SRD = _apart(replies, matrix, parts[0], columns)
        apart_MD = apart_SRD.reshape(-1, width)
        spanning_DM = np.linalg.qr(apart_MD.T)[0]
        within_MM = apart_MD @ spanning_DM
        return np.asarray(spanning_DM @ np.linalg.eigh(within_MM.T @ within_MM)[1])
    gram_DD = np.zeros((width, width))
    for part in parts:
        _, apart_SRD = _apart(replies, matrix, part, columns)
        apart_MD = apart_SRD.reshape(-1, width)
        gram_DD += apart_MD.T @ apart_MD
    return np.asarray(np.linalg.eigh(gram_DD)[1])
