"""The initial head, computed before round 1 from every site's class statistics."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fgvc_core.errors import PeerError, RunFailed
from fgvc_core.flower.records import to_array_record
from fgvc_core.models.class_statistics import (
    COUNTS,
    SUMS,
    ClassStatistics,
    read_statistics,
    unpack_statistics,
)
from fgvc_core.protocol.stages import STATISTICS
from fgvc_core.recipe import Recipe
from fgvc_core.training.start import expected_statistics, no_attributes, started
from fgvc_core.wire.arrays import TensorSpec, pack_all
from fieldmark.server.rounds.context import RunContext, Updates
from fieldmark.server.rounds.stage import Work, run_stage
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.screening.releases import (
    Summary,
    against_others,
    impossible,
    summary,
    unlike_others,
)
from fieldmark.server.screening.trust import bounded, share_among
from fieldmark.server.sites.roll_call import refused_by_all
from fieldmark.server.strategies import SoundReply, Tensors
from fieldmark.server.strategies.spill import Spill


def started_head(
    context: RunContext, updates: Updates, sites: list[str], arrays: ArrayRecord
) -> ArrayRecord:
    """The model before round 1, with a head computed from every site's statistics.

    Raises:
        FieldmarkError: if too few sites answered, or the start needs attributes that are missing.
    """
    recipe, state = context.recipe, context.state
    attributes_KA = context.test.table.attributes_KA if context.test is not None else None
    share = share_among(len(context.exchange.keys), recipe.federation.max_weight_share)
    start = FederatedStart(
        recipe, updates.unpacked(arrays), attributes_KA, share, state.claims,
        context.events, context.checkpoints.folder,
    )  # fmt: skip
    asked = context.trust.in_use(sites)
    needed = context.exchange.quorum()
    work = Work(asked, arrays, start.run, needed, start.specs)
    result = run_stage(STATISTICS, 0, context, updates, work)
    for site, reason in start.refused.items():
        context.events.emit("start_refused", site=site, reason=reason)
        context.tally.left_out(site, STATISTICS)
        context.trust.leave_out(site, reason, 0)
    arrived = len(start.taken)
    if result.value is None or arrived < needed:
        if not arrived and updates.replies.refusals:
            raise refused_by_all(updates.replies.refusals)
        raise RunFailed(
            f"The start found {arrived} sound replies of {needed} needed.",
            why="The head before round 1 would be made of too few sites' statistics.",
            remedy="The run's events.jsonl says why replies were refused; --resume asks again.",
        )
    for site, examples in start.taken.items():
        if examples:
            # A site's first claim bounds its weight in later rounds, too.
            state.claims.setdefault(site, examples)
    context.tally.close()
    context.events.emit("started", method=recipe.train.start, sites=arrived)
    return to_array_record(pack_all(result.value))


class FederatedStart:
    """Computes the head of the first model.

    Args:
        recipe: Its ``train.start`` is not ``none``.
        tensors: The current model; only its head will be replaced.
        attributes_KA: Public class attributes, or None.
        share: Largest share of all pictures that one site counts for, 0.5 to 1 (no bound).
        claims: Site -> the first number of examples that counted in this run.
        events: Told of reduced weights.
        folder: Where statistics are stored until they are judged; None: the system's temporary
            folder.

    Raises:
        ConfigurationError: if the start needs attributes and there are none.
    """

    def __init__(
        self,
        recipe: Recipe,
        tensors: Tensors,
        attributes_KA: NDArray[np.float32] | None,
        share: float = 1.0,
        claims: Mapping[str, int] | None = None,
        events: EventLog | None = None,
        folder: Path | None = None,
    ) -> None:
        if recipe.train.start == "semantic" and attributes_KA is None:
            raise no_attributes()
        self._attributes_KA = attributes_KA
        self._settings, self._federation = recipe.train, recipe.federation
        self._tensors = tensors
        self._share, self._claims = share, claims or {}
        self._events, self._folder = events, folder
        shapes = expected_statistics(tensors, recipe.train)
        self.specs = {name: TensorSpec("float32", shape) for name, shape in shapes.items()}
        """Required tensors of a site's reply."""
        self.refused: dict[str, str] = {}
        """Site -> why its statistics were refused; filled by :meth:`run`."""
        self.taken: dict[str, int] = {}
        """Site -> its pictures, for sites whose statistics count; filled by :meth:`run`."""

    def run(self, replies: Iterable[SoundReply]) -> Tensors | None:
        """The new tensors, or None if no usable statistics came; :attr:`taken` has the counts used.

        Judging needs all sites' statistics, so they are stored in a file: at most two sites' are in
        memory at once. Sums are added in the order of the replies, which the caller keeps fixed.
        """
        with Spill(self._folder, self._federation.spill_mb) as spill:
            summaries = self._received(replies, spill)
            kept = Kept(spill, list(summaries))
            if self._federation.screening:
                self._judge({site: one for site, one in summaries.items() if one}, kept)
            self.taken = {
                site: round(one.examples) if one else 0
                for site, one in summaries.items()
                if site not in self.refused
            }
            factors = self._factors()
            total: ClassStatistics | None = None
            for site, factor in factors.items():
                found = kept.statistics(site)
                found = found if factor == 1.0 else found.times(factor)
                total = found if total is None else total.plus(found)
                del found
        if total is None or not total.counts_K.any():
            return None
        return started(self._tensors, total, self._settings, self._attributes_KA)

    def _received(self, replies: Iterable[SoundReply], spill: Spill) -> dict[str, Summary | None]:
        """Check each reply by itself and store it; site -> its summary, None without pictures."""
        summaries: dict[str, Summary | None] = {}
        for reply in replies:
            found = self._read(reply)
            if found is None:
                continue
            one = summary(found)
            why = impossible(one, found.sums_KD.shape[1]) if one else None
            if why:
                self.refused[reply.site] = why
                continue
            summaries[reply.site] = one
            spill.add(reply.tensors, reply.weight)
        return summaries

    def _read(self, reply: SoundReply) -> ClassStatistics | None:
        try:
            found = unpack_statistics(reply.tensors)
        except PeerError as error:
            self.refused[reply.site] = error.what
            return None
        counted = float(found.counts_K.sum())
        if counted != reply.weight:
            self.refused[reply.site] = (
                f"The counts of the classes come to {counted:,.0f} pictures, and the reply claims "
                f"{reply.weight:,.0f}."
            )
            return None
        return found

    def _judge(self, summaries: dict[str, Summary], kept: "Kept") -> None:
        """Compare sites: first counts and norms, then, among the remaining, directions."""
        self.refused |= unlike_others(summaries, self._federation.max_weight_ratio)
        left = [site for site in summaries if site not in self.refused]
        self.refused |= against_others(left, kept, self._federation.direction_spread)

    def _factors(self) -> dict[str, float]:
        """Site -> weight of each of its pictures, at most 1; in order of the replies."""
        weights = {
            site: min(count, self._claims.get(site, count)) for site, count in self.taken.items()
        }
        claimed = [SoundReply(site, weight, {}) for site, weight in weights.items() if weight]
        cut = bounded(claimed, self._share, 0, self._events) if self._events else claimed
        allowed = {reply.site: reply.weight for reply in cut}
        return {
            site: allowed.get(site, 0.0) / count if count else 1.0
            for site, count in self.taken.items()
        }


class Kept(Mapping[str, NDArray[np.float64]]):
    """Statistics in a file; as a mapping: site -> its class sums per picture."""

    def __init__(self, spill: Spill, sites: list[str]) -> None:
        self._spill = spill
        self._positions = {site: position for position, site in enumerate(sites)}

    def __getitem__(self, site: str) -> NDArray[np.float64]:
        found = self._spill.reply(self._positions[site], (COUNTS, SUMS))
        shares: NDArray[np.float64] = found[SUMS].astype(np.float64)
        shares /= max(float(found[COUNTS].sum(dtype=np.float64)), 1.0)
        return shares

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def statistics(self, site: str) -> ClassStatistics:
        """All statistics of one site."""
        return read_statistics(self._spill.reply(self._positions[site]))
