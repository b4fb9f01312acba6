"""Rules that outvote hostile sites; they need every reply and work on a spilled file.

Each site counts once, whatever it claims to hold: a claimed weight is an attack of its
own. Only Multi-Krum's mean of the chosen is weighted, as Flower's is. Flower's classes
lend their names and settings; what they do with a list of messages is not used.
"""

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg, Krum, MultiKrum
from numpy.typing import NDArray

from fieldmark.server.strategies.base import Aggregate, SoundReply, StreamingFedAvg
from fieldmark.server.strategies.distances import (
    closest_scores,
    geometric_median,
    gram_matrix,
    squared_distances,
    weighted_sum,
)
from fieldmark.server.strategies.least_trimmed import combined
from fieldmark.server.strategies.mixing import Mixed
from fieldmark.server.strategies.spill import Replies, ShapedReplies, Spill


class SpillingFedAvg(StreamingFedAvg):
    """Base of the rules that need every reply."""

    needs: Literal["sum", "all"] = "all"
    spill_folder: Path | None = None
    spill_mb = 256.0
    share = 0.0
    """Share of the sites that may be hostile; what of a number is left over is dropped."""

    guarded: int | None = None
    """Against how many replies of the last round the rule guarded."""

    mix_nearest = False
    """Whether replies are mixed with their nearest neighbours before the rule."""

    def aggregate_train(  # type: ignore[override]
        self, server_round: int, replies: Iterable[SoundReply]
    ) -> Aggregate:
        """What the rule makes of all replies, or None where there were too few."""
        with Spill(self.spill_folder, self.spill_mb) as spill:
            for reply in replies:
                spill.add(reply.tensors, reply.weight)
                del reply
            if len(spill) < max(self.needed, 1):
                return None, None
            self.guarded = self.hostile(len(spill))
            read: ShapedReplies = spill
            if self.mix_nearest and len(spill) > 1:
                read = Mixed(spill, self.hostile(len(spill)))
            tensors = spill.tensors(self.combine(read))
            return self.result(tensors, sum(spill.weights), len(spill))

    def hostile(self, count: int) -> int:
        """How many of so many sound replies may be hostile: who was found out is not among them.

        Guarding against them once more would only leave out honest sites.
        """
        found = self.found()
        return max(int(self.share * (count + found)) - found, 0)

    @abstractmethod
    def combine(self, replies: ShapedReplies) -> NDArray[np.float32]:
        """float32 (size,): the rule itself."""


class SpillingFedMedian(SpillingFedAvg, FedMedian):  # type: ignore[misc]
    """The median of each value (Yin et al. 2018, https://arxiv.org/abs/1803.01498)."""

    weighs = False

    def combine(self, replies: ShapedReplies) -> NDArray[np.float32]:
        """The median of each value; of an even number the mean of the middle two."""
        flat = np.empty(replies.size, dtype=np.float32)
        for where, block_VS in replies.blocks():
            np.median(block_VS, axis=1, overwrite_input=True, out=flat[where])
        return flat


class SpillingTrimmedMean(SpillingFedAvg, FedTrimmedAvg):  # type: ignore[misc]
    """The mean of each value without its extremes (Yin et al. 2018, as above).

    As many replies as may be hostile are cut at either end.
    """

    weighs = False

    def combine(self, replies: ShapedReplies) -> NDArray[np.float32]:
        """The trimmed mean of each value."""
        flat = np.empty(replies.size, dtype=np.float32)
        low = self.hostile(len(replies))
        high = len(replies) - low
        for where, block_VS in replies.blocks():
            block_VS.partition((low, high - 1), axis=1)
            flat[where] = block_VS[:, low:high].mean(axis=1, dtype=np.float64)
        return flat


class _Choosing(SpillingFedAvg):
    """Krum's choice: the replies that are closest to their nearest neighbours."""

    def chosen(self, replies: Replies) -> list[int]:
        """Positions of the chosen replies, best first."""
        hostile = self.hostile(len(replies))
        scores_S = closest_scores(squared_distances(gram_matrix(replies)), hostile)
        return np.argsort(scores_S, kind="stable")[: self.wanted(len(replies), hostile)].tolist()

    @abstractmethod
    def wanted(self, count: int, hostile: int) -> int:
        """How many are chosen."""

    def combine(self, replies: ShapedReplies) -> NDArray[np.float32]:
        """The mean of the chosen, weighted by examples."""
        coefficients_S = np.zeros(len(replies))
        for position in self.chosen(replies):
            coefficients_S[position] = replies.weights[position]
        return weighted_sum(replies, coefficients_S / coefficients_S.sum())


class SpillingKrum(_Choosing, Krum):  # type: ignore[misc]
    """The one update closest to its neighbours (Blanchard et al. 2017).

    https://arxiv.org/abs/1703.02757
    """

    weighs = False

    def wanted(self, count: int, hostile: int) -> int:
        """One."""
        return 1


class SpillingMultiKrum(_Choosing, MultiKrum):  # type: ignore[misc]
    """The mean of all but as many as may be hostile (Blanchard et al. 2017, section 4)."""

    def wanted(self, count: int, hostile: int) -> int:
        """All but the tolerated number."""
        return max(count - hostile, 1)


class SpillingGeometricMedian(SpillingFedAvg):
    """The point with the least sum of distances to all updates (Pillutla et al. 2022).

    Flower has none. https://arxiv.org/abs/1912.13445
    """

    weighs = False

    def combine(self, replies: ShapedReplies) -> NDArray[np.float32]:
        """The geometric median, by Weiszfeld's iterations."""
        return weighted_sum(replies, geometric_median(gram_matrix(replies)))


class SpillingLeastTrimmed(SpillingFedAvg):
    """The mean of those that lie closest together, in principal directions.

    Flower has none. See :mod:`fieldmark.server.strategies.least_trimmed`.
    """

    weighs = False

    def combine(self, replies: ShapedReplies) -> NDArray[np.float32]:
        """Least trimmed squares, direction by direction."""
        return combined(replies, self.hostile(len(replies)), self.spill_mb)
