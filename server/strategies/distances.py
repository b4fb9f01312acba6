"""Distances between a round's replies: Krum scores, geometric median, nearest-neighbor mixing.

Mixing replaces each reply by the mean of its nearest replies before a rule is applied. If sites
differ, honest replies lie far apart, and a rule that selects or weights single replies favors
hostile ones, which agree with each other. Mixed replies lie close together wherever the honest ones
agree (Allouah et al. 2023, algorithm 1, https://arxiv.org/abs/2302.01772).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fieldmark.server.strategies.spill import Replies, ShapedReplies

ITERATIONS = 100
SMALLEST = 1e-6
"""Lower bound of Weiszfeld's divisor, as a share of the mean distance."""


def gram_matrix(replies: Replies) -> NDArray[np.float64]:
    """float64 (S, S): inner products of all replies, relative to the first of them.

    Relative to a reply, the norm of the model itself does not swamp the distances.
    """
    gram_SS = np.zeros((len(replies), len(replies)))
    for _, block_VS in replies.blocks():
        moved_VS = block_VS.astype(np.float64)
        moved_VS -= moved_VS[:, :1].copy()
        gram_SS += moved_VS.T @ moved_VS
    return gram_SS


def squared_distances(gram_SS: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 (S, S) from inner products."""
    norms_S = np.diag(gram_SS)
    return np.maximum(norms_S[:, None] + norms_S[None, :] - 2 * gram_SS, 0.0)


def closest_scores(distances_SS: NDArray[np.float64], hostile: int) -> NDArray[np.float64]:
    """float64 (S,): each reply's summed squared distance to its S - hostile - 2 nearest.

    Krum's score (Blanchard et al. 2017, section 3, https://arxiv.org/abs/1703.02757).
    """
    count = len(distances_SS)
    if count == 1:
        return np.zeros(1)
    others = distances_SS[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    nearest = min(max(1, count - hostile - 2), count - 1)
    return np.sort(others, axis=1)[:, :nearest].sum(axis=1)


def geometric_median(gram_SS: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 (S,): weights with which the mean of the replies is their geometric median.

    The smoothed Weiszfeld algorithm (Pillutla et al. 2022, algorithm 2,
    https://arxiv.org/abs/1912.13445), computed from inner products only.
    """
    count = len(gram_SS)
    weights_S = np.full(count, 1.0 / count)
    for _ in range(ITERATIONS):
        to_each_S = gram_SS @ weights_S
        squared_S = weights_S @ to_each_S - 2 * to_each_S + np.diag(gram_SS)
        distances_S = np.sqrt(np.maximum(squared_S, 0.0))
        if not distances_S.any():
            break
        inverse_S = 1.0 / np.maximum(distances_S, SMALLEST * distances_S.mean())
        before, weights_S = weights_S, inverse_S / inverse_S.sum()
        if np.abs(weights_S - before).max() < 1e-9:
            break
    return weights_S


def weighted_sum(replies: Replies, coefficients_S: NDArray[np.float64]) -> NDArray[np.float32]:
    """float32 (size,): the sum of all replies, each times its coefficient."""
    flat = np.empty(replies.size, dtype=np.float32)
    used = np.flatnonzero(coefficients_S)
    for where, block_VS in replies.blocks():
        flat[where] = block_VS[:, used].astype(np.float64) @ coefficients_S[used]
    return flat


class Mixed:
    """The mixed replies of a round, computed block by block as they are read.

    Args:
        replies: The original replies.
        hostile: How many of them may be hostile; each reply is mixed with its S - hostile nearest.
    """

    def __init__(self, replies: ShapedReplies, hostile: int) -> None:
        self._replies = replies
        self._shares_SS = nearest_shares(squared_distances(gram_matrix(replies)), hostile)
        self.size = replies.size
        self.shapes = replies.shapes
        self.weights: list[float] = (self._shares_SS @ np.array(replies.weights)).tolist()

    def __len__(self) -> int:
        return len(self._replies)

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Blocks of mixed replies; equal replies stay bit-identical."""
        for where, block_VS in self._replies.blocks():
            mixed_VS = self._mixed(block_VS)
            del block_VS
            yield where, mixed_VS

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """float32 (V, S): values ``start`` to ``stop`` of all mixed replies."""
        return self._mixed(self._replies.read(start, stop))

    def _mixed(self, block_VS: NDArray[np.float32]) -> NDArray[np.float32]:
        first_V1 = block_VS[:, :1].copy()
        block_VS -= first_V1
        mixed_VS: NDArray[np.float32] = block_VS @ self._shares_SS.T.astype(np.float32)
        mixed_VS += first_V1
        return mixed_VS


def nearest_shares(distances_SS: NDArray[np.float64], hostile: int) -> NDArray[np.float64]:
    """float64 (S, S): row s has 1/k at the k = S - hostile replies nearest to s, itself first.

    Args:
        distances_SS: Squared distances.
        hostile: Fewer than S.
    """
    count = len(distances_SS)
    nearest = max(count - hostile, 1)
    apart_SS = distances_SS.copy()
    np.fill_diagonal(apart_SS, -1.0)
    order_SK = np.argsort(apart_SS, axis=1, kind="stable")[:, :nearest]
    shares_SS = np.zeros((count, count))
    np.put_along_axis(shares_SS, order_SK, 1.0 / nearest, axis=1)
    return shares_SS
