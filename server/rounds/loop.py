"""The main loop of a run: its stages in order, rounds until done or out of patience, checkpoints.

The scores in round r's replies belong to the model that was sent, model r-1, so that model is kept
until they arrive; a closing evaluation scores the last one. Everything that affects the rest of a
run is in its checkpoint, and all randomness derives from (seed, round), so a resumed run gives the
same result as an uninterrupted one.
"""

import time
from collections.abc import Callable, Collection
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fgvc_core.flower.records import to_array_record
from fgvc_core.protocol.stages import (
    CLASS_SUMS,
    CLASS_SUMS_SUM,
    PERSONAL,
    PRETRAIN,
    SCORE,
    SCORE_SUM,
    STATISTICS,
    TRAIN,
    TRAIN_SUM,
    stages_of,
)
from fgvc_core.protocol.tensor_names import shared
from fgvc_core.wire.arrays import pack_all
from fieldmark.server.home import CoordinatorHome
from fieldmark.server.results.evaluation import TestSplit
from fieldmark.server.rounds.closed_form import closed_head
from fieldmark.server.rounds.closing import closing_scores, closing_sites, personalise
from fieldmark.server.rounds.cohort import draw_cohort, wanted
from fieldmark.server.rounds.context import make_context, remember, training_updates
from fieldmark.server.rounds.heads import started_head
from fieldmark.server.rounds.pretraining import FederatedPretraining
from fieldmark.server.rounds.secure_sum import SumLost
from fieldmark.server.rounds.secure_updates import part_of, summed_round, summed_scores
from fieldmark.server.rounds.stage import (
    VOID_ROUNDS_ALLOWED,
    HeadRound,
    finish_round,
    run_updates,
    sites_in_use,
    void_round,
)
from fieldmark.server.run_log.checkpoint import RunState, Tensors
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.screening.checks import Screened
from fieldmark.server.screening.tally import share
from fieldmark.server.sites.messages import check_round_weight

Total = tuple[float, float, float]
"""Validation pictures, right ones and the sum of their losses, over all sites."""


class Rounds:
    """One run of a federation.

    Args:
        grid: Any Flower grid.
        home: The run's folder.
        state: A new state, or a checkpoint's.
        tensors: The model that the next round starts from.
        test: The coordinator's test split, or None.
        events: The event log.
        remembered: The checkpoint's tensors of server state.
        feature_dim: Length of the vector before the head; used by pre-training only.

    Raises:
        ConfigurationError: if ``federation.local`` leaves nothing to exchange, or matches nothing.
    """

    def __init__(
        self,
        grid: Grid,
        home: CoordinatorHome,
        state: RunState,
        tensors: Tensors,
        test: TestSplit | None,
        events: EventLog,
        remembered: Tensors | None = None,
        feature_dim: int = 0,
    ) -> None:
        self.state = state
        self._recipe = home.recipe
        self._federation = home.recipe.federation
        self._stages = stages_of(home.recipe)
        self._events = events
        remembered = remembered or {}
        self._context = make_context(grid, home, state, tensors, test, events)
        self._updates = training_updates(self._context, tensors, remembered)
        travelling = shared(tensors, self._federation.local)
        self._arrays = to_array_record(pack_all(travelling))
        self._pretraining: FederatedPretraining | None = None
        if PRETRAIN in self._stages and state.round == 0:
            self._pretraining = FederatedPretraining(
                self._context, travelling, feature_dim, remembered
            )
        self._sites: list[str] = []
        self._started = 0.0
        self._failed: set[str] = set()
        self._wall_before = state.wall_s

    def run(self) -> str:
        """Run to the end.

        Returns:
            Why it ended: ``rounds`` or ``patience``.

        Raises:
            RunFailed: if no site takes part, or several rounds in a row find no quorum.
        """
        self._started = time.monotonic()
        context, updates = self._context, self._updates
        cohort = wanted(len(context.exchange.keys), self._federation.fraction)
        masked = TRAIN_SUM in self._stages
        part = part_of(context, updates.specs) if masked else None
        check_round_weight(updates.specs, self._recipe.wire, cohort, part)
        if not context.checkpoints.exists("last"):
            self._checkpoint()
        self._sites = context.exchange.roll_call()
        if self._pretraining is not None:
            self._pretrain(self._pretraining)
        if STATISTICS in self._stages and self.state.round == 0 and not self.state.start:
            self._arrays = started_head(context, updates, self._sites, self._arrays)
            self._checkpoint()
        closed = CLASS_SUMS in self._stages or CLASS_SUMS_SUM in self._stages
        one_round = self._closed_round if closed else self._round
        one_round = self._summed_round if masked else one_round
        while (reason := self._ended()) is None:
            self._sites = context.exchange.refresh()
            one_round(self.state.round + 1)
        if not self.state.closed:
            self.state.closed = True
            scored: list[Screened] = []
            # Otherwise scores stay at the sites, and the last model is kept.
            if SCORE in self._stages:
                self._sites = context.exchange.refresh()
                scored = closing_scores(context, updates, self._sites, self._arrays)
            if SCORE_SUM in self._stages:
                self._sum_scores()
            else:
                self._take_scores(self.state.round, self._arrays, scored)
            self._checkpoint()
        if PERSONAL in self._stages and not self.state.personal:
            self._sites = context.exchange.refresh()
            personalise(context, updates, self._sites, self._arrays)
            self._checkpoint()
        return reason

    def _ended(self) -> str | None:
        # Checked before each round, because a run may be resumed after its last round.
        if self.state.round >= self._federation.rounds:
            return "rounds"
        if 0 < self._federation.patience <= self.state.since_best:
            return "patience"
        return None

    def _round(self, number: int) -> None:
        started = time.monotonic()
        context, updates = self._context, self._updates
        sites = sites_in_use(context, self._sites, number)
        cohort = self._draw(sites, number, self._failed)
        self._events.emit("round_started", round=number, cohort=cohort)
        needed = context.exchange.quorum(self._federation.fraction)
        received = self._arrays
        result = run_updates(TRAIN, number, context, updates, received, cohort, needed)
        if result.value is None or result.void:
            self._failed |= set(cohort) - {found.reply.site for found in result.accepted}
            void_round(number, context, updates, len(result.accepted), needed)
            return
        self._failed.clear()
        self._take_scores(number - 1, received, result.accepted)
        self._finish(number, result.value, cohort, result.accepted, started)

    def _summed_round(self, number: int) -> None:
        """A round of a masked sum. If it is lost its number is spent: sites answer one set in it.

        Where too few sites are left because the others refuse, the run ends instead, and asks for
        the same when it is resumed.
        """
        started = time.monotonic()
        context = self._context
        cohort = self._draw(sites_in_use(context, self._sites, number), number, self._failed)
        self._events.emit("round_started", round=number, cohort=cohort)
        received = self._arrays
        try:
            done = summed_round(context, self._updates, number, cohort, received)
        except SumLost as lost:
            if lost.refused:
                raise
            self._spend(number, cohort, started, lost)
            return
        figures = done.figures
        told = {"loss": figures.loss / figures.weight if figures.loss else None}
        if figures.cut:
            told["cut"] = figures.cut
        scores = (figures.examples, figures.correct, figures.loss_sum)
        self._take_total(number - 1, received, scores)
        self._finish(number, done.arrays, cohort, done.accepted, started, told)

    def _spend(self, number: int, cohort: list[str], started: float, lost: SumLost) -> None:
        """Record a round whose sum was lost: the model is unchanged, its number is used up.

        Raises:
            SumLost: if it is the third in a row.
        """
        context = self._context
        for site in lost.silent:
            context.trust.unsound(site, lost.what)
        context.trust.close(number)
        self._events.emit("round_spent", round=number, reason=lost.what, silent=list(lost.silent))
        self._failed |= set(lost.silent)
        self._finish(number, self._arrays, cohort, [], started, {"spent": lost.what})
        if self.state.void_rounds >= VOID_ROUNDS_ALLOWED:
            raise lost

    def _sum_scores(self) -> None:
        """Scores of the last model, summed over all sites; without them it is not scored."""
        context, updates = self._context, self._updates
        sites = closing_sites(context, self._sites)
        number = self.state.round
        try:
            total = summed_scores(context, updates, sites, self._arrays)
        except SumLost as lost:
            self._events.emit("scores_lost", round=number, reason=lost.what)
            if self.state.best_score is not None:
                # A model that was scored is not given up for one that was not.
                return
            total = (0.0, 0.0, 0.0)
        if self._recipe.privacy is None:
            self._take_total(number, self._arrays, total)
            return
        take_noisy(self.state, number, *total[:2])
        self._take_total(number, self._arrays, (0, 0, 0.0))

    def _draw(self, sites: list[str], number: int, failed: Collection[str]) -> list[str]:
        secure = self._recipe.secure
        cohort = draw_cohort(
            sites,
            self._federation.fraction,
            self._recipe.seed,
            number,
            expected_dropout=self._federation.expected_dropout,
            last_drawn=self.state.last_drawn,
            failed=failed,
            least=1 if secure is None else secure.least,
        )
        self.state.last_drawn.update(dict.fromkeys(cohort, number))
        return cohort

    def _pretrain(self, pretraining: FederatedPretraining) -> None:
        """Train the backbone before round 1 on unlabeled pictures."""
        while not pretraining.done:
            self._sites = self._context.exchange.refresh()
            pretraining.round(self._sites, self._draw)
            whole = {**self._updates.unpacked(self._arrays), **pretraining.backbone}
            self._arrays = to_array_record(pack_all(whole))
            self._checkpoint()
        self.state.last_drawn = {}

    def _closed_round(self, number: int) -> None:
        started = time.monotonic()
        context, updates = self._context, self._updates
        sites = sites_in_use(context, self._sites, number)
        self._events.emit("round_started", round=number, cohort=sites)
        result, arrived = closed_head(
            HeadRound(context, updates, number, sites, self._arrays, self._checkpoint)
        )
        if result.value is None or arrived < result.needed:
            context.trust.void(number)
            void_round(number, context, updates, arrived, result.needed)
            return
        self.state.centre = []
        self._finish(number, result.value, sites, result.accepted, started)

    def _finish(
        self,
        number: int,
        arrays: ArrayRecord,
        cohort: list[str],
        accepted: list[Screened],
        started: float,
        summed: dict[str, Any] | None = None,
    ) -> None:
        self._arrays = arrays
        self.state.round = number
        self._context.trust.counted([r.reply.site for r in accepted], number)
        void = self.state.void_rounds
        entry = finish_round(number, self._context, arrays, cohort, accepted, started)
        # What no single reply states: of a masked sum.
        self.state.history.append(entry | (summed or {}))
        if summed and "spent" in summed:
            # Only a round that counts begins the count anew.
            self.state.void_rounds = void + 1
        self._test_round(number)
        guarded = self._updates.strategy.guarded
        told = {} if guarded is None else {"guarded": guarded}
        self._events.emit("round_finished", **self.state.history[-1], **told)
        self._checkpoint()

    def _take_scores(self, round_: int, arrays: ArrayRecord, replies: list[Screened]) -> None:
        take_scores(self.state, round_, arrays, replies, self._keep_best)
        self._tell_scored(round_)

    def _take_total(self, round_: int, arrays: ArrayRecord, total: Total) -> None:
        take_total(self.state, round_, arrays, total, {}, self._keep_best)
        self._tell_scored(round_)

    def _keep_best(self, model: ArrayRecord) -> None:
        self._context.checkpoints.write("best", self._whole(model), self.state)

    def _tell_scored(self, round_: int) -> None:
        entry = self.state.history[round_ - 1] if round_ > 0 else {}
        if entry.get("val_top1") is not None:
            # A model's scores arrive with the replies of the next round.
            self._events.emit(
                "scored", round=round_, val_top1=entry["val_top1"], val_loss=entry["val_loss"]
            )

    def _test_round(self, number: int) -> None:
        every, test = self._recipe.evaluate.every, self._context.test
        if test is None or not every or number % every:
            return
        scored, _ = test.score(self._whole(self._arrays))
        self.state.history[-1].update(top1=scored.top1, macro_f1=scored.macro_f1)

    def _whole(self, arrays: ArrayRecord) -> Tensors:
        """A model plus the coordinator's copies of the tensors that stay at the sites."""
        return {**self._context.local, **self._updates.unpacked(arrays)}

    def _checkpoint(self) -> None:
        checkpoints, number = self._context.checkpoints, self.state.round
        self.state.wall_s = self._wall_before + time.monotonic() - self._started
        server = remember(self._updates)
        if self._pretraining is not None:
            server |= self._pretraining.remember()
        # Logged first: events after the checkpoint's mark are cut off on resume.
        self._events.emit("checkpoint", round=number, file="last.safetensors")
        self.state.events = self._events.mark()
        every, whole = self._federation.keep_every, self._whole(self._arrays)
        if every and number and number % every == 0:
            checkpoints.write(f"round-{number:06d}", whole, self.state, server)
        checkpoints.write("last", whole, self.state, server)


def take_scores(
    state: RunState,
    round_: int,
    arrays: ArrayRecord,
    replies: list[Screened],
    keep: Callable[[ArrayRecord], None],
) -> None:
    """Record the scores of model ``round_`` and check whether it is the best so far.

    Args:
        state: Changed in place.
        round_: Which round's model was scored.
        arrays: That model.
        replies: The accepted replies, with or without scores.
        keep: Called with the model if it is the best, or no site scored it.
    """
    scores = {r.reply.site: r.reply.scores for r in replies if r.reply.scores is not None}
    noisy = [r.reply.noisy_scores for r in replies if r.reply.noisy_scores is not None]
    take_noisy(state, round_, sum(n.examples for n in noisy), sum(n.correct for n in noisy))
    total = (
        sum(s.examples for s in scores.values()),
        sum(s.correct for s in scores.values()),
        sum(s.loss_sum for s in scores.values()),
    )
    sites = {site: {"top1": share(s), "macro_f1": s.macro_f1} for site, s in scores.items()}
    take_total(state, round_, arrays, total, sites, keep)


def take_total(
    state: RunState,
    round_: int,
    arrays: ArrayRecord,
    total: Total,
    sites: dict[str, dict[str, Any]],
    keep: Callable[[ArrayRecord], None],
) -> None:
    """As :func:`take_scores`, from the scores of all sites together.

    Args:
        state: Changed in place.
        round_: Which round's model was scored.
        arrays: That model.
        total: Over all sites; zero pictures if no site scored it.
        sites: Scores by site, of those that are known.
        keep: Called with the model if it is the best, or no site scored it.
    """
    examples, correct, loss_sum = total
    if examples == 0:
        state.best_round, state.since_best = round_, 0
        keep(arrays)
        return
    top1, loss = correct / examples, loss_sum / examples
    if round_ > 0:
        state.history[round_ - 1].update(val_top1=top1, val_loss=loss)
    if state.best_score is not None and [top1, -loss] <= state.best_score:
        state.since_best += 1
        return
    state.best_round, state.best_score = round_, [top1, -loss]
    state.since_best = 0
    state.best_sites = sites
    keep(arrays)


def take_noisy(state: RunState, round_: int, examples: float, correct: float) -> None:
    """Record noisy scores. They never select a model, because they are few and uncertain."""
    if round_ > 0 and examples > 0:
        state.history[round_ - 1].update(val_top1=min(max(correct / examples, 0.0), 1.0))
