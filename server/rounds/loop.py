"""The loop: cohort, requests, replies, mean, scores, checkpoint; until done or patient no more.

The scores in round r's replies belong to the model that was sent, model r-1, so
that model is kept until they are in; a closing evaluation scores the last one.
Everything that decides how a run goes on is in its checkpoint, and everything drawn
derives from (seed, round): a resumed run ends as the uninterrupted one does.
"""

import time
from itertools import chain

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fgvc_core.flower.records import to_array_record
from fgvc_core.protocol.tensor_names import shared
from fgvc_core.wire.arrays import pack_all
from fieldmark.server.home import CoordinatorHome
from fieldmark.server.results.evaluation import TestSplit
from fieldmark.server.rounds.best_model import take_scores
from fieldmark.server.rounds.closing import closing_scores, personalise
from fieldmark.server.rounds.cohort import draw_cohort, wanted
from fieldmark.server.rounds.context import assemble
from fieldmark.server.rounds.entry import round_entry
from fieldmark.server.rounds.heads import closed_head, started_head
from fieldmark.server.rounds.memory import remember
from fieldmark.server.rounds.pretraining import FederatedPretraining
from fieldmark.server.rounds.voids import nobody_left, void_round
from fieldmark.server.run_log.checkpoint import RunState, Tensors
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.screening.checks import Screened
from fieldmark.server.screening.weights import bounded, share_among
from fieldmark.server.sites.outgoing import check_round_weight


class Rounds:
    """One run of a federation.

    Args:
        grid: Any Flower grid.
        home: The run's folder.
        state: A fresh state, or a checkpoint's.
        tensors: The model that the next round starts from.
        test: The coordinator's test split, or None.
        events: Where events go.
        remembered: What the checkpoint's server remembered as tensors.
        feature_dim: Length of the vector before the head; only pre-training asks.

    Raises:
        ConfigurationError: if ``federation.local`` leaves nothing to travel, or names nothing.
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
        self._events = events
        self._parts = assemble(grid, home, state, tensors, test, events, remembered or {})
        travelling = shared(tensors, self._federation.local)
        self._arrays = to_array_record(pack_all(travelling))
        self._pretraining: FederatedPretraining | None = None
        if self._recipe.pretrain.method != "none" and state.round == 0:
            self._pretraining = FederatedPretraining(
                self._recipe,
                travelling,
                feature_dim,
                self._parts.exchange,
                state,
                self._parts.books,
                self._parts.standing,
                events,
                home.run_dir,
                remembered or {},
            )
        self._sites: list[str] = []
        self._started = 0.0
        self._wall_before = state.wall_s

    def run(self) -> str:
        """Run to the end.

        Returns:
            Why it ended: ``rounds`` or ``patience``.

        Raises:
            RunFailed: if no site takes part, or no quorum is found again and again.
        """
        self._started = time.monotonic()
        parts, privacy = self._parts, self._recipe.privacy
        cohort = wanted(len(parts.exchange.keys), self._federation.fraction)
        check_round_weight(parts.specs, self._recipe.wire, cohort)
        if not parts.checkpoints.exists("last"):
            self._checkpoint()
        self._sites = parts.exchange.roll_call()
        if self._pretraining is not None:
            self._pretrain(self._pretraining)
        if self.state.round == 0 and self._recipe.train.start != "none":
            self._arrays = started_head(parts, self._sites, self._arrays)
            self._checkpoint()
        closed_form = privacy is not None and privacy.method == "class-sums"
        while (reason := self._ended()) is None:
            self._sites = parts.exchange.refresh()
            if closed_form:
                self._closed_round(self.state.round + 1)
            else:
                self._round(self.state.round + 1)
        if not self.state.closed:
            self.state.closed = True
            scored: list[Screened] = []
            # Else scores stay at the sites: the last model is the one that is kept.
            if privacy is None or privacy.score_share:
                self._sites = parts.exchange.refresh()
                scored = closing_scores(parts, self._sites, self._arrays)
            self._take_scores(self.state.round, self._arrays, scored)
            self._checkpoint()
        if self._recipe.personal.epochs and not self.state.personal:
            self._sites = parts.exchange.refresh()
            personalise(parts, self._sites, self._arrays)
            self._checkpoint()
        return reason

    def _ended(self) -> str | None:
        # Asked before each round: a run may be resumed after its last one.
        if self.state.round >= self._federation.rounds:
            return "rounds"
        if 0 < self._federation.patience <= self.state.since_best:
            return "patience"
        return None

    def _round(self, number: int) -> None:
        parts = self._parts
        started = time.monotonic()
        parts.books.reset()
        sites = parts.standing.in_use(self._sites)
        if not sites:
            raise nobody_left(number)
        cohort = self._draw(sites, number)
        self._events.emit("round_started", round=number, cohort=cohort)
        sent = parts.outgoing.received(parts.outgoing(self._arrays))
        late = parts.late.take(number, sent)
        parts.history.begin(sent, parts.pace(number))
        requests = parts.asking.train(number, cohort, self._arrays, parts.grid)
        needed = parts.quorum(wanted(len(sites), self._federation.fraction))
        parts.strategy.needed = needed
        accepted: list[Screened] = []
        parts.intake.refusals = {}
        received = self._arrays
        answers = parts.exchange.ask(requests, self._federation.deadline_s)
        specs = parts.strategy.expected(parts.specs)
        replies = chain(late, parts.intake.sound(answers, accepted, specs))
        share = share_among(
            len(parts.exchange.keys),
            self._federation.max_weight_share,
            weighs=parts.strategy.weighs,
        )
        arrays, _ = parts.strategy.aggregate_train(
            number, bounded(replies, share, number, self._events)
        )
        parts.standing.close(number)
        if arrays is None or len(accepted) < needed:
            self._void(number, len(accepted), needed)
            return
        parts.history.close(parts.unpacked(arrays))
        self._take_scores(number - 1, received, accepted)
        self._finish(number, arrays, cohort, accepted, started)

    def _draw(self, sites: list[str], number: int) -> list[str]:
        cohort = draw_cohort(
            sites,
            self._federation.fraction,
            self._recipe.seed,
            number,
            expected_dropout=self._federation.expected_dropout,
            last_drawn=self.state.last_drawn,
        )
        self.state.last_drawn.update(dict.fromkeys(cohort, number))
        return cohort

    def _pretrain(self, pretraining: FederatedPretraining) -> None:
        """The backbone before round 1, from pictures without labels."""
        while not pretraining.done:
            self._sites = self._parts.exchange.refresh()
            pretraining.round(self._sites, self._draw)
            whole = {**self._parts.unpacked(self._arrays), **pretraining.backbone}
            self._arrays = to_array_record(pack_all(whole))
            self._checkpoint()
        self.state.last_drawn = {}

    def _closed_round(self, number: int) -> None:
        parts = self._parts
        started = time.monotonic()
        sites = parts.standing.in_use(self._sites)
        if not sites:
            raise nobody_left(number)
        self._events.emit("round_started", round=number, cohort=sites)
        parts.books.reset()
        parts.intake.refusals = {}
        accepted: list[Screened] = []
        arrays, arrived = closed_head(
            parts, number, sites, self._arrays, accepted, self._checkpoint
        )
        needed = parts.quorum(len(sites))
        if arrays is None or arrived < needed:
            parts.standing.void(number)
            self._void(number, arrived, needed)
            return
        self.state.centre = []
        self._finish(number, arrays, sites, accepted, started)

    def _finish(
        self,
        number: int,
        arrays: ArrayRecord,
        cohort: list[str],
        accepted: list[Screened],
        started: float,
    ) -> None:
        parts = self._parts
        self.state.void_rounds = 0
        self._arrays = arrays
        self.state.round = number
        parts.standing.counted([r.reply.site for r in accepted], number)
        parts.books.close()
        digests = parts.exchange.digests(arrays)
        self.state.history.append(
            round_entry(number, cohort, accepted, parts.books, digests, started)
        )
        self._test_round(number)
        guarded = getattr(parts.strategy, "guarded", None)
        told = {} if guarded is None else {"guarded": guarded}
        self._events.emit("round_finished", **self.state.history[-1], **told)
        self._checkpoint()

    def _take_scores(self, round_: int, arrays: ArrayRecord, replies: list[Screened]) -> None:
        def keep(model: ArrayRecord) -> None:
            self._parts.checkpoints.write("best", self._parts.whole(model), self.state)

        take_scores(self.state, round_, arrays, replies, keep)
        entry = self.state.history[round_ - 1] if round_ > 0 else {}
        if entry.get("val_top1") is not None:
            # A model's scores come with the replies of the round after it.
            self._events.emit(
                "scored", round=round_, val_top1=entry["val_top1"], val_loss=entry["val_loss"]
            )

    def _test_round(self, number: int) -> None:
        every, test = self._recipe.evaluate.every, self._parts.test
        if test is None or not every or number % every:
            return
        scored, _ = test.score(self._parts.whole(self._arrays))
        self.state.history[-1].update(top1=scored.top1, macro_f1=scored.macro_f1)

    def _void(self, number: int, accepted: int, needed: int) -> None:
        self._parts.books.close()
        refusals = self._parts.intake.refusals
        if self._parts.history.void():
            self._events.emit("screening_reset", round=number)
        void_round(self.state, self._events, number, accepted, needed, refusals)

    def _checkpoint(self) -> None:
        parts = self._parts
        number = self.state.round
        self.state.wall_s = self._wall_before + time.monotonic() - self._started
        server = remember(parts.strategy, parts.history)
        if self._pretraining is not None:
            server |= self._pretraining.remember()
        # Said before it is done: what a checkpoint does not remember is cut off on resume.
        self._events.emit("checkpoint", round=number, file="last.safetensors")
        self.state.events = self._events.mark()
        every = self._federation.keep_every
        if every and number and number % every == 0:
            name = f"round-{number:06d}"
            parts.checkpoints.write(name, parts.whole(self._arrays), self.state, server)
        parts.checkpoints.write("last", parts.whole(self._arrays), self.state, server)
