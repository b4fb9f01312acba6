"""Robust aggregation rules, which need every reply at once and read them from a file.

Each site counts once, whatever its claimed weight: a false claim is an attack, too. Only
Multi-Krum's mean of the chosen replies is weighted, like Flower's.
"""

from abc import abstractmethod
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fgvc_core.components import STRATEGIES
from fieldmark.server.strategies.base import Aggregation, SoundReply, Strategy, Tensors
from fieldmark.server.strategies.distances import (
    Mixed,
    closest_scores,
    geometric_median,
    gram_matrix,
    squared_distances,
    weighted_sum,
)
from fieldmark.server.strategies.least_trimmed import combined
from fieldmark.server.strategies.spill import ShapedReplies, Spill


class RobustRule(Strategy):
    """Base of the rules that need every reply."""

    weighs = False
    robust = True

    def aggregate(self, replies: Iterable[SoundReply], round_: Aggregation) -> Tensors | None:
        """The aggregate of all replies, or None if there were too few."""
        settings = self.setup.federation
        with Spill(self.setup.folder, settings.spill_mb) as spill:
            for reply in replies:
                spill.add(reply.tensors, reply.weight)
                del reply
            if len(spill) < max(round_.needed, 1):
                return None
            self.guarded = self.hostile(len(spill), round_.rejected())
            read: ShapedReplies = spill
            if settings.mix_nearest and len(spill) > 1:
                read = Mixed(spill, self.guarded)
            return spill.tensors(self.combine(read, self.guarded))

    def hostile(self, count: int, rejected: int) -> int:
        """Attackers still to be tolerated among ``count`` accepted replies.

        Those that screening has already rejected are not among them; tolerating them once more
        would only leave out honest sites. ``byzantine_share`` of all is rounded down.
        """
        share = self.setup.federation.byzantine_share
        return max(int(share * (count + rejected)) - rejected, 0)

    @abstractmethod
    def combine(self, replies: ShapedReplies, hostile: int) -> NDArray[np.float32]:
        """float32 (size,): the rule itself, tolerating ``hostile`` of the replies."""


@STRATEGIES.register("fedmedian")
class Median(RobustRule):
    """The coordinate-wise median (Yin et al. 2018, https://arxiv.org/abs/1803.01498)."""

    def combine(self, replies: ShapedReplies, hostile: int) -> NDArray[np.float32]:
        """The median of each value; for an even number, the mean of the middle two."""
        flat = np.empty(replies.size, dtype=np.float32)
        for where, block_VS in replies.blocks():
            np.median(block_VS, axis=1, overwrite_input=True, out=flat[where])
        return flat


@STRATEGIES.register("trimmed-mean")
class TrimmedMean(RobustRule):
    """The coordinate-wise trimmed mean (Yin et al. 2018, as above).

    The number of replies cut at each end is the number that may be hostile.
    """

    def combine(self, replies: ShapedReplies, hostile: int) -> NDArray[np.float32]:
        """The trimmed mean of each value."""
        flat = np.empty(replies.size, dtype=np.float32)
        high = len(replies) - hostile
        for where, block_VS in replies.blocks():
            block_VS.partition((hostile, high - 1), axis=1)
            flat[where] = block_VS[:, hostile:high].mean(axis=1, dtype=np.float64)
        return flat


@STRATEGIES.register("krum")
class Krum(RobustRule):
    """The one update closest to its neighbors (Blanchard et al. 2017).

    https://arxiv.org/abs/1703.02757
    """

    def chosen(self, count: int, hostile: int) -> int:
        """How many replies are chosen."""
        return 1

    def combine(self, replies: ShapedReplies, hostile: int) -> NDArray[np.float32]:
        """The mean of the replies closest to their nearest neighbors, weighted by examples."""
        scores_S = closest_scores(squared_distances(gram_matrix(replies)), hostile)
        best = np.argsort(scores_S, kind="stable")[: self.chosen(len(replies), hostile)]
        coefficients_S = np.zeros(len(replies))
        for position in best.tolist():
            coefficients_S[position] = replies.weights[position]
        return weighted_sum(replies, coefficients_S / coefficients_S.sum())


@STRATEGIES.register("multi-krum")
class MultiKrum(Krum):
    """The mean of the S - hostile best-scored replies (Blanchard et al. 2017, section 4)."""

    weighs = True

    def chosen(self, count: int, hostile: int) -> int:
        """All but the tolerated number."""
        return max(count - hostile, 1)


@STRATEGIES.register("geometric-median")
class GeometricMedian(RobustRule):
    """The point with the least sum of distances to all updates (Pillutla et al. 2022).

    https://arxiv.org/abs/1912.13445
    """

    def combine(self, replies: ShapedReplies, hostile: int) -> NDArray[np.float32]:
        """The geometric median, by Weiszfeld's iterations."""
        return weighted_sum(replies, geometric_median(gram_matrix(replies)))


@STRATEGIES.register("least-trimmed")
class LeastTrimmed(RobustRule):
    """The mean of the values that lie closest together, in principal directions.

    See :mod:`fieldmark.server.strategies.least_trimmed`.
    """

    def combine(self, replies: ShapedReplies, hostile: int) -> NDArray[np.float32]:
        """Least trimmed squares, direction by direction."""
        return combined(replies, hostile, self.setup.federation.spill_mb)
