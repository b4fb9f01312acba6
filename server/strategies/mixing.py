"""Nearest-neighbour mixing: each reply becomes the mean of those nearest to it, before a rule.

Where sites differ, honest replies lie far apart, and a rule that picks or weighs single ones
gives hostile ones, who agree with each other, more say than their number. Mixed replies lie
close together wherever the honest ones agree (Allouah et al. 2023, algorithm 1,
https://arxiv.org/abs/2302.01772).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fieldmark.server.strategies.distances import gram_matrix, squared_distances
from fieldmark.server.strategies.spill import ShapedReplies


class Mixed:
    """The replies of a round, mixed; nothing is written, each block is mixed as it is read.

    Args:
        replies: As they came.
        hostile: How many of them may be hostile: each is mixed with all but so many.
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
        """Blocks of mixed replies; equal replies stay exactly what they are."""
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
