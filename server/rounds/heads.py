"""The initial head, computed before round 1 from every site's class statistics."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fgvc_core.errors import PeerError
from fgvc_core.flower.records import to_array_record
from fgvc_core.models.class_statistics import (
    COUNTS,
    SUMS,
    ClassStatistics,
    added,
    read_statistics,
    split_folds,
    unpack_statistics,
)
from fgvc_core.protocol.stages import STATISTICS
from fgvc_core.recipe import Recipe
from fgvc_core.training.head_search import Found
from fgvc_core.training.start import (
    expected_statistics,
    folds_of,
    no_attributes,
    searched,
    started,
    with_head,
)
from fgvc_core.wire.arrays import TensorSpec, pack_all
from fieldmark.server.rounds.context import RunContext, Updates
from fieldmark.server.rounds.head_search import AskedSites, too_few
from fieldmark.server.rounds.stage import Work, run_stage
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.screening.heads import SiteFolds
from fieldmark.server.screening.releases import (
    Summary,
    against_others,
    impossible,
    summary,
    unlike_others,
)
from fieldmark.server.screening.trust import bounded, share_among
from fieldmark.server.sites.membership import refused_by_all
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
    if recipe.train.start == "semantic" and attributes_KA is None:
        raise no_attributes()
    share = share_among(len(context.exchange.keys), recipe.federation.max_weight_share)
    tensors = updates.unpacked(arrays)
    start = FederatedStart(
        recipe, tensors, share, state.claims, context.events, context.checkpoints.folder
    )
    asked = context.trust.in_use(sites)
    needed = context.exchange.quorum()
    sent = updates.outgoing(arrays)
    work = Work(asked, sent, start.gather, needed, start.specs)
    result = run_stage(STATISTICS, 0, context, updates, work)
    for site, reason in start.refused.items():
        context.events.emit("start_refused", site=site, reason=reason)
        context.tally.left_out(site, STATISTICS)
        context.trust.leave_out(site, reason, 0)
    arrived = len(start.taken)
    if result.value is None or arrived < needed:
        refusals = updates.replies.refusals
        if not arrived and refusals and len(asked) - len(refusals) < max(needed, 1):
            raise refused_by_all(refusals)
        raise too_few(arrived, needed)
    for site, examples in start.taken.items():
        if examples:
            # A site's first claim bounds its weight in later rounds, too.
            state.claims.setdefault(site, examples)
    parts = result.value
    searched_sites = AskedSites(context, updates, start.found, needed, context.checkpoints.folder)
    found = searched(parts, recipe.train, searched_sites)
    if found is None:
        head = started(tensors, added(parts), recipe.train, attributes_KA)
    else:
        head = with_head(tensors, found.head, recipe.train)
    if recipe.loss.uses_released_shares:
        state.class_shares = class_shares(added(parts).counts_K)
    context.tally.close()
    told = {} if found is None else told_of(found)
    state.start = {"method": recipe.train.start, "sites": len(searched_sites.left), **told}
    context.events.emit("started", **state.start)
    return to_array_record(pack_all(head))


def class_shares(counts_K: NDArray[np.float64]) -> list[float]:
    """Shares of the classes, each above 0, to three digits: what sites need, and no count."""
    shares_K = (counts_K + 1) / (counts_K + 1).sum()
    return [float(f"{share:.3g}") for share in shares_K]


def told_of(found: Found) -> dict[str, Any]:
    """What events and metrics say about a search for a head."""
    return {
        "chosen": str(found.candidate),
        "messages": found.messages,
        "tried": [one.as_json() for one in found.tried],
    }


class FederatedStart:
    """Gathers the class statistics of all sites.

    Args:
        recipe: Its ``train.start`` is not ``none``.
        tensors: The current model.
        share: Largest share of all pictures that one site counts for, 0.5 to 1 (no bound).
        claims: Site -> the first number of examples that counted in this run.
        events: Told of reduced weights.
        folder: Where statistics are stored until they are judged; None: the system's temporary
            folder.
    """

    def __init__(
        self,
        recipe: Recipe,
        tensors: Tensors,
        share: float = 1.0,
        claims: Mapping[str, int] | None = None,
        events: EventLog | None = None,
        folder: Path | None = None,
    ) -> None:
        self._folds = folds_of(recipe.train)
        self._federation = recipe.federation
        self._share, self._claims = share, claims or {}
        self._events, self._folder = events, folder
        shapes = expected_statistics(tensors, recipe.train)
        self.specs = {name: TensorSpec("float32", shape) for name, shape in shapes.items()}
        """Required tensors of a site's reply."""
        self.refused: dict[str, str] = {}
        """Site -> why its statistics were refused; filled by :meth:`gather`."""
        self.taken: dict[str, int] = {}
        """Site -> its pictures, for sites whose statistics count; filled by :meth:`gather`."""
        self.found: dict[str, SiteFolds] = {}
        """Site -> what is known of its folds, for those sites; filled by :meth:`gather`."""

    def gather(self, replies: Iterable[SoundReply]) -> list[ClassStatistics] | None:
        """Statistics of each fold over all sites (or of all pictures), or None if none came.

        Judging needs all sites' statistics, so they are stored in a file: at most two sites' are in
        memory at once. Sums are added in the order of the replies, which the caller keeps fixed.
        """
        with Spill(self._folder, self._federation.spill_mb) as spill:
            summaries = self._received(replies, spill)
            kept = Kept(spill, list(summaries), self._folds)
            if self._federation.screening:
                self._judge({site: one for site, one in summaries.items() if one}, kept)
            self.taken = {
                site: round(one.examples) if one else 0
                for site, one in summaries.items()
                if site not in self.refused
            }
            totals: list[ClassStatistics] | None = None
            for site, factor in self._factors().items():
                parts = kept.folds(site)
                self.found[site] = SiteFolds.of(parts, factor)
                if factor != 1.0:
                    parts = [part.times(factor) for part in parts]
                if totals is None:
                    totals = parts
                else:
                    totals = [one.plus(two) for one, two in zip(totals, parts, strict=True)]
                del parts
        if totals is None or not any(part.counts_K.any() for part in totals):
            return None
        return totals

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
            parts = split_folds(reply.tensors, self._folds)
            found = added(unpack_statistics(part) for part in parts)
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

    def __init__(self, spill: Spill, sites: list[str], folds: int = 0) -> None:
        self._spill, self._folds = spill, folds
        self._positions = {site: position for position, site in enumerate(sites)}

    def __getitem__(self, site: str) -> NDArray[np.float64]:
        found = self._spill.reply(self._positions[site], (COUNTS, SUMS))
        shares: NDArray[np.float64] = found[SUMS].astype(np.float64)
        if self._folds:
            shares = shares.sum(axis=0)
        shares /= max(float(found[COUNTS].sum(dtype=np.float64)), 1.0)
        return shares

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def folds(self, site: str) -> list[ClassStatistics]:
        """One site's statistics of each fold, or of all its pictures."""
        tensors = self._spill.reply(self._positions[site])
        return [read_statistics(part) for part in split_folds(tensors, self._folds)]
