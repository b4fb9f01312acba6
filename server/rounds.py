"""The loop: cohort, requests, replies, mean, scores, checkpoint; until done or patient no more.

The scores in round r's replies belong to the model that was sent, model r-1, so
that model is kept until they are in; a closing evaluation scores the last one.
Everything that decides how a run goes on is in its checkpoint, and everything drawn
derives from (seed, round): a resumed run ends as the uninterrupted one does.
"""

import math
import time
from collections.abc import Callable, Iterator
from itertools import chain

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fgvc_core.errors import RunFailed
from fgvc_core.inference.taxonomy import taxonomy_of
from fgvc_core.protocol.messages import Phase
from fgvc_core.protocol.tensor_names import check_local, local, shared
from fgvc_core.training.schedule import Stretch, mean_rate
from fgvc_core.wire.arrays import TensorSpec, pack_all, spec_of, unpack_all
from server.asking import Asking
from server.books import Books
from server.checkpoint import Checkpoints, RunState, Tensors
from server.closed_form import ClosedForm
from server.cohort import draw_cohort, wanted
from server.entry import round_entry
from server.evaluation import TestSplit
from server.events import EventLog
from server.exchange import Exchange
from server.history import UpdateHistory
from server.home import CoordinatorHome
from server.intake import Intake
from server.late import LateReplies
from server.memory import recall, remember
from server.outgoing import Outgoing, check_round_weight
from server.pretraining import FederatedPretraining
from server.records import from_array_record, to_array_record
from server.scoring import personal_scores, take_scores
from server.screening import Screened, Screening
from server.standing import Standing
from server.start import FederatedStart, refused_start
from server.strategies import SoundReply, make_strategy
from server.voids import nobody_left, void_round

CLOSING_SITES = 100
"""Most sites that are asked to score the last model: of a thousand, a hundred say enough."""


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
        recipe = home.recipe
        self._grid = grid
        self._recipe = recipe
        self._federation = recipe.federation
        self.state = state
        # Local tensors are the sites' own; the coordinator's stay as they were at the start.
        check_local(list(tensors), self._federation.local)
        self._local = local(tensors, self._federation.local)
        travelling = shared(tensors, self._federation.local)
        self._specs: dict[str, TensorSpec] = {n: spec_of(a) for n, a in travelling.items()}
        self._arrays = to_array_record(pack_all(travelling))
        self._test = test
        self._events = events
        self._exchange = Exchange(grid, home, state.run, events)
        # With top-k a change waits at its site for so many rounds, and travels with theirs.
        self._waits = math.ceil(1 / recipe.wire.top_k) if recipe.wire.top_k else 1
        self._history = UpdateHistory(self._federation, state.screening, waits=self._waits)
        self._books = Books(state, events)
        self._standing = Standing(state.standing, self._federation.set_aside_after, events)
        screening = Screening(
            self._specs,
            self._exchange.keys,
            recipe.wire.max_update_mb,
            protected=recipe.privacy is not None,
            max_weight=self._federation.max_weight,
            history=self._history,
            wire=recipe.wire,
        )
        self._outgoing = Outgoing(self._specs, recipe.wire)
        self._intake = Intake(
            state, screening, self._books, self._standing, self._federation.deadline_s
        )
        self._late = LateReplies(
            self._federation.late == "mix",
            self._exchange,
            self._intake,
            self._books,
            self._history,
            self._rate,
        )
        self._class_count = len(home.class_names)
        self._strategy = make_strategy(self._federation, recipe.train, home.run_dir)
        self._strategy.begin(self._specs, len(home.allow_list))
        self._strategy.found = self._standing.found
        recall(remembered or {}, self._strategy, self._history)
        self._asking = Asking(
            self._exchange,
            self._strategy,
            self._outgoing,
            self._books,
            self._standing,
            state,
            keeps=bool(self._strategy.keeps or self._federation.local or recipe.wire.top_k),
        )
        known = None if test is None else taxonomy_of(test.table)
        self._checkpoints = Checkpoints(home.run_dir, recipe, home.class_names, known)
        self._pretraining: FederatedPretraining | None = None
        if recipe.pretrain.method != "none" and state.round == 0:
            self._pretraining = FederatedPretraining(
                recipe,
                travelling,
                feature_dim,
                self._exchange,
                state,
                self._books,
                self._standing,
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
        privacy = self._recipe.privacy
        check_round_weight(
            self._specs,
            self._recipe.wire,
            wanted(len(self._exchange.keys), self._federation.fraction),
        )
        if not self._checkpoints.exists("last"):
            self._checkpoint()
        self._sites = self._exchange.roll_call()
        if self._pretraining is not None:
            self._pretrain(self._pretraining)
        if self.state.round == 0 and self._recipe.train.start != "none":
            self._start()
        closed_form = privacy is not None and privacy.method == "class-sums"
        while (reason := self._ended()) is None:
            self._sites = self._exchange.refresh()
            if closed_form:
                self._closed_round(self.state.round + 1)
            else:
                self._round(self.state.round + 1)
        if not self.state.closed:
            self.state.closed = True
            if privacy is None or privacy.score_share:
                self._close()
            else:
                # Scores stay at the sites: the last model is the one that is kept.
                self._take_scores(self.state.round, self._arrays, [])
                self._checkpoint()
        if self._recipe.personal.epochs and not self.state.personal:
            self._personalise()
        return reason

    def _ended(self) -> str | None:
        # Asked before each round: a run may be resumed after its last one.
        if self.state.round >= self._federation.rounds:
            return "rounds"
        if 0 < self._federation.patience <= self.state.since_best:
            return "patience"
        return None

    def _round(self, number: int) -> None:
        started = time.monotonic()
        self._books.reset()
        sites = self._standing.in_use(self._sites)
        if not sites:
            raise nobody_left(number)
        cohort = self._draw(sites, number)
        self._events.emit("round_started", round=number, cohort=cohort)
        sent = self._outgoing.received(self._outgoing(self._arrays))
        late = self._late.take(number, sent)
        self._history.begin(sent, self._rate(number))
        requests = self._asking.train(number, cohort, self._arrays, self._grid)
        needed = math.ceil(
            self._federation.quorum * wanted(len(sites), self._federation.fraction) - 1e-9
        )
        self._strategy.needed = needed
        accepted: list[Screened] = []
        self._intake.refusals = {}
        received = self._arrays
        answers = self._exchange.ask(requests, self._federation.deadline_s)
        specs = self._strategy.expected(self._specs)
        arrays, _ = self._strategy.aggregate_train(
            number, chain(late, self._intake.sound(answers, accepted, specs))
        )
        self._standing.close(number)
        if arrays is None or len(accepted) < needed:
            self._void(number, len(accepted), needed)
            return
        self._history.close(self._unpacked(arrays))
        self._take_scores(number - 1, received, accepted)
        self._finish(number, arrays, cohort, accepted, started)

    def _rate(self, number: int) -> Callable[[float], float]:
        # Of the fastest round that its updates may stem from, as far as eight of them tell.
        earliest = max(1, number - self._waits + 1)
        rounds = range(number, earliest - 1, -math.ceil((number - earliest + 1) / 8))
        stretches = [Stretch(each, self._federation.rounds) for each in rounds]

        def rate(examples: float) -> float:
            count = max(round(examples), 1)
            return max(mean_rate(self._recipe.train, stretch, count) for stretch in stretches)

        return rate

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
            self._sites = self._exchange.refresh()
            pretraining.round(self._sites, self._draw)
            whole = {**self._unpacked(self._arrays), **pretraining.backbone}
            self._arrays = to_array_record(pack_all(whole))
            self._checkpoint()
        self.state.last_drawn = {}

    def _start(self) -> None:
        """The head before round 1, from every site's statistics."""
        self._books.reset()
        self._intake.refusals = {}
        attributes_KA = self._test.table.attributes_KA if self._test is not None else None
        start = FederatedStart(self._recipe, self._unpacked(self._arrays), attributes_KA)
        tensors, arrived = start.run(self._released(0, "statistics", self._arrays, start.specs, []))
        for site, reason in start.refused.items():
            self._events.emit("start_refused", site=site, reason=reason)
        needed = math.ceil(self._federation.quorum * len(self._sites) - 1e-9)
        if tensors is None or arrived < needed:
            raise refused_start(arrived, needed, self._intake.refusals)
        self._books.close()
        self._arrays = to_array_record(pack_all(tensors))
        self._events.emit("started", method=self._recipe.train.start, sites=arrived)
        self._checkpoint()

    def _closed_round(self, number: int) -> None:
        """A round of two phases: noisy centre, noisy class sums, and the head from them."""
        started = time.monotonic()
        self._events.emit("round_started", round=number, cohort=self._sites)
        self._books.reset()
        self._intake.refusals = {}
        accepted: list[Screened] = []

        def ask(
            phase: Phase, arrays: ArrayRecord, specs: dict[str, TensorSpec]
        ) -> Iterator[SoundReply]:
            accepted.clear()
            return self._released(number, phase, arrays, specs, accepted)

        closed = ClosedForm(self._recipe, self._exchange.units, self._class_count)
        tensors, arrived = closed.run(self._unpacked(self._arrays), ask)
        needed = math.ceil(self._federation.quorum * len(self._sites) - 1e-9)
        if tensors is None or arrived < needed:
            self._void(number, arrived, needed)
            return
        arrays = to_array_record(pack_all(tensors))
        self._finish(number, arrays, self._sites, accepted, started)

    def _released(
        self,
        number: int,
        phase: Phase,
        arrays: ArrayRecord,
        specs: dict[str, TensorSpec],
        accepted: list[Screened],
    ) -> Iterator[SoundReply]:
        """What every site releases about its pictures under a model."""
        requests = self._asking.release(number, phase, self._sites, arrays)
        answers = self._exchange.ask(requests, self._federation.deadline_s)
        return self._intake.sound(answers, accepted, specs)

    def _finish(
        self,
        number: int,
        arrays: ArrayRecord,
        cohort: list[str],
        accepted: list[Screened],
        started: float,
    ) -> None:
        self.state.void_rounds = 0
        self._arrays = arrays
        self.state.round = number
        self._standing.counted([r.reply.site for r in accepted], number)
        self._books.close()
        digests = self._exchange.digests(arrays)
        self.state.history.append(
            round_entry(number, cohort, accepted, self._books, digests, started)
        )
        self._test_round(number)
        self._events.emit("round_finished", **self.state.history[-1])
        self._checkpoint()

    def _take_scores(self, round_: int, arrays: ArrayRecord, replies: list[Screened]) -> None:
        def keep(model: ArrayRecord) -> None:
            self._checkpoints.write("best", self._whole(model), self.state)

        take_scores(self.state, round_, arrays, replies, keep)
        entry = self.state.history[round_ - 1] if round_ > 0 else {}
        if entry.get("val_top1") is not None:
            # A model's scores come with the replies of the round after it.
            self._events.emit(
                "scored", round=round_, val_top1=entry["val_top1"], val_loss=entry["val_loss"]
            )

    def _test_round(self, number: int) -> None:
        every = self._recipe.evaluate.every
        if self._test is None or not every or number % every:
            return
        scored, _ = self._test.score(self._whole(self._arrays))
        self.state.history[-1].update(top1=scored.top1, macro_f1=scored.macro_f1)

    def _void(self, number: int, accepted: int, needed: int) -> None:
        self._books.close()
        refusals = self._intake.refusals
        if self._history.void():
            self._events.emit("screening_reset", round=number)
        void_round(self.state, self._events, number, accepted, needed, refusals)

    def _close(self) -> None:
        """Score the last model at every site, or at a drawn hundred of very many."""
        self._sites = self._exchange.refresh()
        self._books.reset()
        sites = self._standing.in_use(self._sites)
        if len(sites) > CLOSING_SITES:
            number = self.state.round + 1
            sites = draw_cohort(sites, CLOSING_SITES / len(sites), self._recipe.seed, number)
        requests = self._asking.score(self.state.round, sites, self._arrays)
        replies: list[Screened] = []
        answers = self._exchange.ask(requests, self._federation.deadline_s)
        for _ in self._intake.sound(answers, replies):
            raise RunFailed("A scoring reply carried an update.")
        self._books.close()
        self._take_scores(self.state.round, self._arrays, replies)
        self._checkpoint()

    def _personalise(self) -> None:
        """Each site fine-tunes the best model for itself, and says what it gained."""
        self._sites = self._exchange.refresh()
        self._books.reset()
        number, arrays = self.state.round, self._arrays
        if not self._local:
            # What stays at the sites goes with the last round; else it is the best model.
            best, _ = self._checkpoints.read("best")
            number, arrays = self.state.best_round, to_array_record(pack_all(best))
        replies: list[Screened] = []
        requests = self._asking.score(
            number, self._standing.in_use(self._sites), arrays, "personal"
        )
        answers = self._exchange.ask(requests, self._federation.deadline_s)
        for _ in self._intake.sound(answers, replies):
            raise RunFailed("A scoring reply carried an update.")
        self._books.close()
        self.state.personal = personal_scores([screened.reply for screened in replies])
        self._events.emit("personalised", sites=len(self.state.personal))
        self._checkpoint()

    def _checkpoint(self) -> None:
        number = self.state.round
        self.state.wall_s = self._wall_before + time.monotonic() - self._started
        server = remember(self._strategy, self._history)
        if self._pretraining is not None:
            server |= self._pretraining.remember()
        # Said before it is done: what a checkpoint does not remember is cut off on resume.
        self._events.emit("checkpoint", round=number, file="last.safetensors")
        self.state.events = self._events.mark()
        every = self._federation.keep_every
        if every and number and number % every == 0:
            name = f"round-{number:06d}"
            self._checkpoints.write(name, self._whole(self._arrays), self.state, server)
        self._checkpoints.write("last", self._whole(self._arrays), self.state, server)

    def _whole(self, arrays: ArrayRecord) -> Tensors:
        return {**self._local, **self._unpacked(arrays)}

    def _unpacked(self, arrays: ArrayRecord) -> Tensors:
        return unpack_all(from_array_record(arrays), self._specs)
