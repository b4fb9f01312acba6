"""The loop: cohort, requests, replies, mean, scores, checkpoint; until done or patient no more.

The scores in round r's replies belong to the model that was sent, model r-1, so
that model is kept until they are in; a closing evaluation scores the last one.
Everything that decides how a run goes on is in its checkpoint, and everything drawn
derives from (seed, round): a resumed run ends as the uninterrupted one does.
"""

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fgvc_core.errors import PeerError, RunFailed
from fgvc_core.protocol.messages import Kind, Phase, Reply, Request, Scores
from fgvc_core.wire.arrays import TensorSpec, pack_all, spec_of, unpack_all
from server.checkpoint import Checkpoints, RunState, Tensors
from server.closed_form import ClosedForm
from server.cohort import draw_cohort
from server.evaluation import TestSplit
from server.events import EventLog
from server.exchange import Answer, Exchange, refused_by_all
from server.home import CoordinatorHome
from server.records import from_array_record, to_array_record
from server.screening import Screened, Screening, SiteRefusal, reply_bytes
from server.strategies import SoundReply, make_strategy

VOID_ROUNDS_ALLOWED = 3


class Rounds:
    """One run of a federation.

    Args:
        grid: Any Flower grid.
        home: The run's folder.
        state: A fresh state, or a checkpoint's.
        tensors: The model that the next round starts from.
        test: The coordinator's test split, or None.
        events: Where events go.
    """

    def __init__(
        self,
        grid: Grid,
        home: CoordinatorHome,
        state: RunState,
        tensors: Tensors,
        test: TestSplit | None,
        events: EventLog,
    ) -> None:
        self._grid = grid
        self._recipe = home.recipe
        self._federation = home.recipe.federation
        self.state = state
        self._specs: dict[str, TensorSpec] = {n: spec_of(a) for n, a in tensors.items()}
        self._arrays = to_array_record(pack_all(tensors))
        self._test = test
        self._events = events
        self._exchange = Exchange(grid, home, state.run, events)
        self._screening = Screening(
            self._specs,
            self._exchange.keys,
            home.recipe.wire.max_update_mb,
            protected=home.recipe.privacy is not None,
        )
        self._class_count = len(home.class_names)
        self._strategy = make_strategy(self._federation)
        self._checkpoints = Checkpoints(home.run_dir, home.recipe, home.class_names)
        self._sites: list[str] = []
        self._refusals: dict[str, str] = {}
        self._sent = 0
        self._received = 0
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
        if self.state.round == 0:
            self._checkpoint()
        self._sites = self._exchange.roll_call()
        closed_form = privacy is not None and privacy.method == "class-sums"
        while (reason := self._ended()) is None:
            self._sites = self._exchange.refresh()
            if closed_form:
                self._closed_round(self.state.round + 1)
            else:
                self._round(self.state.round + 1)
        if privacy is None or privacy.score_share:
            self._close()
        else:
            # Scores stay at the sites: the last model is the one that is kept.
            self._take_scores(self.state.round, self._arrays, [])
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
        started = time.monotonic()
        cohort = draw_cohort(self._sites, self._federation.fraction, self._recipe.seed, number)
        self._events.emit("round_started", round=number, cohort=cohort)
        self._sent = self._received = 0
        requests: list[tuple[Request, Message]] = []

        def compose(round_: int, arrays: ArrayRecord, config: ConfigRecord) -> Iterator[Message]:
            mu = config.get("proximal-mu", 0.0)
            for site in cohort:
                pair = self._exchange.compose(
                    "train",
                    round_,
                    site,
                    arrays,
                    mu if isinstance(mu, float) else 0.0,
                    known_head=self._known_head(site),
                )
                requests.append(pair)
                yield pair[1]

        self._strategy.compose = compose
        list(self._strategy.configure_train(number, self._arrays, ConfigRecord(), self._grid))
        accepted: list[Screened] = []
        self._refusals = {}
        received, self._arrays_before = self._arrays, self._arrays
        arrays, _ = self._strategy.aggregate_train(
            number, self._sound(self._exchange.ask(requests, self._federation.deadline_s), accepted)
        )
        needed = math.ceil(self._federation.quorum * len(cohort) - 1e-9)
        if arrays is None or len(accepted) < needed:
            self._void(number, len(accepted), needed)
            return
        self._take_scores(number - 1, received, accepted)
        self._finish(number, arrays, cohort, accepted, started)

    def _closed_round(self, number: int) -> None:
        """A round of two phases: noisy centre, noisy class sums, and the head from them."""
        started = time.monotonic()
        self._events.emit("round_started", round=number, cohort=self._sites)
        self._sent = self._received = 0
        self._refusals = {}
        accepted: list[Screened] = []

        def ask(
            phase: Phase, arrays: ArrayRecord, specs: dict[str, TensorSpec]
        ) -> Iterator[SoundReply]:
            accepted.clear()
            self._arrays_before = arrays
            requests = [
                self._exchange.compose(
                    "release", number, site, arrays, phase=phase, known_head=self._known_head(site)
                )
                for site in self._sites
            ]
            answers = self._exchange.ask(requests, self._federation.deadline_s)
            return self._sound(answers, accepted, specs)

        closed = ClosedForm(self._recipe, self._exchange.units, self._class_count)
        tensors, arrived = closed.run(self._unpacked(self._arrays), ask)
        needed = math.ceil(self._federation.quorum * len(self._sites) - 1e-9)
        if tensors is None or arrived < needed:
            self._void(number, arrived, needed)
            return
        arrays = to_array_record(pack_all(tensors))
        self._finish(number, arrays, self._sites, accepted, started)

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
        self.state.history.append(self._entry(number, cohort, accepted, started))
        self._test_round(number)
        self._checkpoint()
        self._events.emit("round_finished", **self.state.history[-1])

    def _known_head(self, site: str) -> str:
        return str(self.state.ledgers.get(site, [0, ""])[1])

    def _sound(
        self,
        answers: Iterator[Answer],
        accepted: list[Screened],
        specs: dict[str, TensorSpec] | None = None,
    ) -> Iterator[SoundReply]:
        """Screen answers one at a time; refused ones are recorded and left out."""
        for answer in answers:
            request = answer.request
            self._sent += self._sent_bytes(request)
            try:
                if answer.message is None:
                    raise PeerError(
                        answer.refusal
                        or f"No reply within deadline_s = {self._federation.deadline_s:g}."
                    )
                length = int(self.state.ledgers.get(request.site, [0, ""])[0])
                screened = self._screening.screen(answer.message, request, specs, length)
            except PeerError as error:
                if isinstance(error, SiteRefusal) and error.reply.code == "refused-policy":
                    self._refusals[request.site] = error.reply.reason
                self._note(request, answer, None, error.what)
                continue
            self._received += screened.nbytes
            self._remember(screened.reply)
            self._note(request, answer, screened, None)
            # The tensors are folded in and forgotten; what is kept is the body.
            accepted.append(replace(screened, update=None))
            if screened.update is not None:
                yield screened.update

    def _note(
        self, request: Request, answer: Answer, screened: Screened | None, reason: str | None
    ) -> None:
        reply = screened.reply if screened else None
        scores = reply.scores if reply else None
        self._events.emit(
            "reply",
            round=request.round,
            kind=request.kind,
            site=request.site,
            accepted=reason is None,
            reason=reason,
            bytes_up=screened.nbytes if screened else 0,
            bytes_down=self._sent_bytes(request),
            seconds=round(answer.seconds, 4),
            work_seconds=float(reply.seconds) if reply else None,
            examples=reply.examples if reply else None,
            loss=reply.loss if reply else None,
            val_top1=_share(scores),
        )
        figures = self.state.sites.setdefault(
            request.site,
            {"rounds": 0, "refused": 0, "bytes_up": 0, "bytes_down": 0, "examples": None},
        )
        figures["bytes_up"] += screened.nbytes if screened else 0
        figures["bytes_down"] += self._sent_bytes(request)
        figures["refused"] += reply is None
        if reply is not None and request.kind in ("train", "release"):
            figures["rounds"] += request.phase != "centre"
            # Under differential privacy it is the public number that weighs, not a count.
            figures["examples"] = reply.examples if reply.privacy is None else None

    def _remember(self, reply: Reply) -> None:
        """The site's ledger as it was when it answered, and what the run has cost there."""
        self.state.ledgers[reply.site] = [reply.ledger_length, reply.ledger_head]
        if reply.privacy is not None:
            self.state.privacy[reply.site] = reply.privacy.model_dump()

    def _sent_bytes(self, request: Request) -> int:
        body = len(request.model_dump_json())
        return body + reply_bytes("", b"", from_array_record(self._arrays_before))

    def _take_scores(self, round_: int, arrays: ArrayRecord, replies: list[Screened]) -> None:
        """Scores of model ``round_``: is it the best so far?"""
        scores = {r.reply.site: r.reply.scores for r in replies if r.reply.scores is not None}
        self._take_noisy(round_, [r.reply for r in replies])
        examples = sum(s.examples for s in scores.values())
        if examples == 0:
            self.state.best_round, self.state.since_best = round_, 0
            self._keep_best(arrays)
            return
        top1 = sum(s.correct for s in scores.values()) / examples
        loss = sum(s.loss_sum for s in scores.values()) / examples
        if round_ > 0:
            self.state.history[round_ - 1].update(val_top1=top1, val_loss=loss)
        if self.state.best_score is not None and [top1, -loss] <= self.state.best_score:
            self.state.since_best += 1
            return
        self.state.best_round, self.state.best_score = round_, [top1, -loss]
        self.state.since_best = 0
        self.state.best_sites = {
            site: {"top1": _share(s), "macro_f1": s.macro_f1} for site, s in scores.items()
        }
        self._keep_best(arrays)

    def _take_noisy(self, round_: int, replies: list[Reply]) -> None:
        """Noisy scores add up to a figure; they choose nothing, being few and uncertain."""
        noisy = [reply.noisy_scores for reply in replies if reply.noisy_scores is not None]
        examples = sum(scores.examples for scores in noisy)
        if round_ > 0 and examples > 0:
            top1 = sum(scores.correct for scores in noisy) / examples
            self.state.history[round_ - 1].update(val_top1=min(max(top1, 0.0), 1.0))

    def _keep_best(self, arrays: ArrayRecord) -> None:
        self._checkpoints.write("best", self._unpacked(arrays), self.state)

    def _entry(
        self, number: int, cohort: list[str], accepted: list[Screened], started: float
    ) -> dict[str, Any]:
        losses = [(r.reply.loss, r.reply.examples) for r in accepted if r.reply.loss is not None]
        weight = sum(examples for _, examples in losses)
        loss = sum(loss * examples for loss, examples in losses) / weight if weight else None
        self.state.bytes_up += self._received
        self.state.bytes_down += self._sent
        return {
            "round": number,
            "top1": None,
            "macro_f1": None,
            "loss": loss,
            "val_top1": None,
            "val_loss": None,
            "seconds": round(time.monotonic() - started, 3),
            "bytes_up": self._received,
            "bytes_down": self._sent,
            "cohort": len(cohort),
            "accepted": len(accepted),
            "refused": len(cohort) - len(accepted),
            # Two runs whose models are equal to the bit have equal digests, round by round.
            "model": _digest(self._exchange.digests(self._arrays)),
        }

    def _test_round(self, number: int) -> None:
        every = self._recipe.evaluate.every
        if self._test is None or not every or number % every:
            return
        scored, _ = self._test.score(self._unpacked(self._arrays))
        self.state.history[-1].update(top1=scored.top1, macro_f1=scored.macro_f1)

    def _void(self, number: int, accepted: int, needed: int) -> None:
        self.state.void_rounds += 1
        self.state.bytes_up += self._received
        self.state.bytes_down += self._sent
        self._events.emit("round_void", round=number, accepted=accepted, needed=needed)
        if not accepted and self._refusals:
            raise refused_by_all(self._refusals)
        if self.state.void_rounds >= VOID_ROUNDS_ALLOWED:
            raise RunFailed(
                f"Round {number} found {accepted} sound replies of {needed} needed, "
                f"{self.state.void_rounds} times in a row.",
                why="The model was left as it was.",
                remedy="The run's events.jsonl says why replies were refused; "
                "--resume goes on from the last checkpoint.",
            )

    def _close(self) -> None:
        """Score the last model at every site."""
        self._sites = self._exchange.refresh()
        self._arrays_before = self._arrays
        self._sent = self._received = 0
        kind: Kind = "score"
        requests = [
            self._exchange.compose(
                kind, self.state.round, site, self._arrays, known_head=self._known_head(site)
            )
            for site in self._sites
        ]
        replies: list[Screened] = []
        answers = self._exchange.ask(requests, self._federation.deadline_s)
        for _ in self._sound(answers, replies):
            raise RunFailed("A scoring reply carried an update.")
        self.state.bytes_up += self._received
        self.state.bytes_down += self._sent
        self._take_scores(self.state.round, self._arrays, replies)
        self._checkpoint()

    def _checkpoint(self) -> None:
        self.state.wall_s = self._wall_before + time.monotonic() - self._started
        path = self._checkpoints.write("last", self._unpacked(self._arrays), self.state)
        self._events.emit("checkpoint", round=self.state.round, file=path.name)

    def _unpacked(self, arrays: ArrayRecord) -> Tensors:
        return unpack_all(from_array_record(arrays), self._specs)


def _digest(tensors: dict[str, str]) -> str:
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(tensors.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _share(scores: Scores | None) -> float | None:
    return scores.correct / scores.examples if scores and scores.examples else None
