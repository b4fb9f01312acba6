"""The sites of a federation, asked about heads by messages.

The sites are those whose class statistics were taken. One that does not answer, refuses, or
answers what cannot be, is left out from then on and named; the fit goes on without its pictures. A
site that keeps its scores to itself is not left out of the fit, and has no say in the choice.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fgvc_core.errors import RunFailed
from fgvc_core.flower.records import to_array_record
from fgvc_core.models.class_statistics import Floats
from fgvc_core.models.head_stack import (
    ALL,
    COUNTS,
    HeadStack,
    counts_specs,
    gradient_specs,
    read_gradients,
)
from fgvc_core.models.regression import Summed
from fgvc_core.protocol.stages import FOLD_COUNTS, GRADIENTS, Stage
from fgvc_core.wire.arrays import TensorSpec, pack_all
from fieldmark.server.rounds.stage import Work, run_stage
from fieldmark.server.screening.convexity import ConvexAnswers
from fieldmark.server.screening.heads import SiteFolds, impossible_counts, impossible_gradient
from fieldmark.server.strategies import SoundReply

if TYPE_CHECKING:
    from fieldmark.server.rounds.context import RunContext, Updates

ROOM = 0.9
"""Share of ``wire.max_update_mb`` that one message's heads may take."""


def too_few(arrived: int, needed: int) -> RunFailed:
    """Error of a start that too few sites take part in."""
    return RunFailed(
        f"The start found {arrived} sound replies of {needed} needed.",
        why="The head before round 1 would be made of too few sites' statistics.",
        remedy="The run's events.jsonl says why replies were refused; --resume asks again.",
    )


class AskedSites:
    """Asks the sites of a run; see :class:`fgvc_core.training.head_search.Sites`.

    Args:
        context: The run's.
        updates: Provides the screening of replies.
        found: Site -> what is known of its folds, in the order in which sites are asked.
        needed: Fewest sites.
        folder: Folder for what is kept of the answers; None: the system's temporary folder.
    """

    def __init__(
        self,
        context: "RunContext",
        updates: "Updates",
        found: Mapping[str, SiteFolds],
        needed: int,
        folder: Path | None = None,
    ) -> None:
        self._context, self._updates = context, updates
        self._known, self._needed = found, needed
        self.left = list(found)
        """Sites that are still part of the fit."""
        self._answers = ConvexAnswers(folder)
        self._counting = list(found)
        """Those of them that have answered every question about folds."""

    def gradients(self, heads: HeadStack) -> tuple[list[Summed], bool]:
        """Sums of each head over its learned folds, and whether a site is missing since then.

        Raises:
            RunFailed: if too few sites are left.
        """
        before = list(self.left)
        chunks = heads.chunks(self._most_bytes())
        while True:
            asked = list(self.left)
            found = [one for chunk in chunks for one in self._summed(chunk)]
            # All heads are to be judged by the same sites' pictures.
            if len(chunks) == 1 or self.left == asked:
                return found, self.left != before

    def _summed(self, heads: HeadStack) -> list[Summed]:
        classes, dim = heads.weight_MKD.shape[1:]
        totals = [Summed(0.0, np.zeros((classes, dim)), np.zeros(classes)) for _ in heads.fold_M]

        # On folds a fit that ends early makes a worse candidate, and is not chosen.
        last = list(heads.fold_M) == [ALL]
        if last:
            self._answers.begin((heads.weight_MKD[0], heads.bias_MVK[0, 0]))

        def take(reply: SoundReply) -> str | None:
            known = self._known[reply.site]
            sums = [read_gradients(reply.tensors, m) for m in range(len(heads))]
            for m, one in enumerate(sums):
                head = heads.weight_MKD[m], heads.bias_MVK[m, 0]
                why = impossible_gradient(one, head, known, int(heads.fold_M[m]))
                if why is None and last:
                    why = self._answers.contradiction(reply.site, one)
                if why:
                    return why
            for m, one in enumerate(sums):
                totals[m] = totals[m].plus(one.times(known.factor))
            return None

        answered = self._ask(GRADIENTS, heads, gradient_specs(len(heads), classes, dim), take)
        gone = [site for site in self.left if site not in answered]
        for site in gone:
            # Refused or missing: the event of the reply says why.
            self._context.events.emit("start_left_out", site=site)
        self._leave_out(gone)
        return totals

    def counts(self, stacks: Sequence[HeadStack]) -> list[Floats]:
        """Of each stack, float64 (M, V, 3, K): counts on the heads' held-out folds.

        All heads are counted on the same pictures: those of the sites that have answered all.

        Raises:
            RunFailed: if too few sites have.
        """
        by_site: dict[str, list[list[Floats]]] = {site: [] for site in self._counting}
        for stack in stacks:
            parts = self._counted(stack)
            by_site = {site: [*own, parts[site]] for site, own in by_site.items() if site in parts}
        found = {site: own for site, own in by_site.items() if site in self.left}
        if len(found) < max(self._needed, 1):
            raise too_few(len(found), self._needed)
        totals = [np.zeros((len(s), s.bias_MVK.shape[1], 3, s.bias_MVK.shape[2])) for s in stacks]
        for site, own in found.items():
            for total, parts_of_site in zip(totals, own, strict=True):
                total += self._known[site].factor * np.concatenate(parts_of_site)
        return totals

    def _counted(self, heads: HeadStack) -> dict[str, list[Floats]]:
        """Site -> its counts of each chunk, for those that have answered every one.

        Who has not answered one is asked no other: its counts could not be used, and each message
        would wait for it until the deadline.
        """
        chunks = heads.chunks(self._most_bytes())
        by_site: dict[str, list[Floats]] = {}
        for chunk in chunks:

            def take(reply: SoundReply, chunk: HeadStack = chunk) -> str | None:
                counts_MV3K = reply.tensors[COUNTS].astype(np.float64)
                why = impossible_counts(counts_MV3K, chunk, self._known[reply.site])
                if why is None:
                    by_site.setdefault(reply.site, []).append(counts_MV3K)
                return why

            variants, classes = chunk.bias_MVK.shape[1:]
            specs = counts_specs(len(chunk), variants, classes)
            asked = [site for site in self.left if site in self._counting]
            answered = self._ask(FOLD_COUNTS, chunk, specs, take, asked)
            self._counting = [site for site in asked if site in answered]
        return {site: own for site, own in by_site.items() if len(own) == len(chunks)}

    def _ask(
        self,
        stage: Stage,
        heads: HeadStack,
        specs: dict[str, TensorSpec],
        take: Callable[[SoundReply], str | None],
        sites: list[str] | None = None,
    ) -> set[str]:
        """Ask some or all of the sites that are left; returns those whose answer was taken.

        A site that answers what cannot be is set aside for the run.
        """
        answered: set[str] = set()
        refused: dict[str, str] = {}

        def consume(replies: Iterator[SoundReply]) -> bool:
            for reply in replies:
                why = take(reply)
                if why is None:
                    answered.add(reply.site)
                else:
                    refused[reply.site] = why
            return True

        sent = to_array_record(pack_all(heads.packed()))
        asked = list(self.left) if sites is None else sites
        work = Work(asked, sent, consume, self._needed, specs)
        run_stage(stage, 0, self._context, self._updates, work)
        for site, reason in refused.items():
            self._context.tally.left_out(site, stage)
            self._context.trust.leave_out(site, reason, 0)
            self._context.events.emit("start_refused", site=site, reason=reason)
        self._leave_out(list(refused))
        return answered

    def _leave_out(self, sites: list[str]) -> None:
        """Go on without some sites, whose events say why.

        Raises:
            RunFailed: if too few are left.
        """
        self.left = [site for site in self.left if site not in sites]
        if len(self.left) < max(self._needed, 1):
            raise too_few(len(self.left), self._needed)

    def _most_bytes(self) -> float:
        return ROOM * self._context.recipe.wire.max_update_mb * 1e6
