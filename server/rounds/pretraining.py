"""Rounds before round 1, in which the backbone learns from pictures without labels.

They go as rounds of training do: a cohort, signed requests, screened replies, a mean. What
travels is what trains before the head, and the projector, which ends with this. Nothing here is
scored. A hostile site meets the same robust rule as later, where the recipe names one; else it
is a weighted mean, whatever optimiser or variates the strategy has: those belong to training.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fgvc_core.errors import ConfigurationError
from fgvc_core.flower.records import from_array_record, to_array_record
from fgvc_core.recipe import Recipe
from fgvc_core.training.loop import Stretch, mean_rate
from fgvc_core.training.self_supervised import HEAD, PROJECTOR, fresh_projector, steps_of
from fgvc_core.wire.arrays import TensorSpec, pack_all, spec_of, unpack_all
from fieldmark.server.rounds.cohort import wanted
from fieldmark.server.rounds.entry import round_entry
from fieldmark.server.rounds.voids import nobody_left, void_round
from fieldmark.server.run_log.checkpoint import RunState
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.screening.checks import Screened, Screening
from fieldmark.server.screening.comparison import UpdateHistory
from fieldmark.server.screening.replies import Intake
from fieldmark.server.screening.tally import Books
from fieldmark.server.screening.trust import Standing
from fieldmark.server.screening.weights import bounded, share_among
from fieldmark.server.sites.messages import Exchange
from fieldmark.server.sites.outgoing import Outgoing, check_round_weight
from fieldmark.server.strategies import make_strategy
from fieldmark.server.strategies.mean import Tensors

_PLAIN = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold", "fednova")
_MODEL, _DIRECTION = "pretrain/", "pretrain-direction/"

Draw = Callable[[list[str], int], list[str]]


class FederatedPretraining:
    """The pre-training of one run.

    Args:
        recipe: With a method in ``[pretrain]``.
        model: The whole model at the start.
        feature_dim: D, the length of the vector before the head.
        exchange: Signs and carries.
        state: Its ``pretraining`` gets an entry a round.
        books: Where replies are written down.
        standing: What becomes of sites whose replies are unsound.
        events: Where events go.
        run_dir: Folder of the file of rules that need every reply.
        remembered: What a checkpoint's server remembered as tensors.

    Raises:
        ConfigurationError: if nothing before the head travels.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Tensors,
        feature_dim: int,
        exchange: Exchange,
        state: RunState,
        books: Books,
        standing: Standing,
        events: EventLog,
        run_dir: Path,
        remembered: Tensors,
    ) -> None:
        settings = recipe.pretrain
        backbone = {n: a for n, a in model.items() if not n.startswith(HEAD)}
        if not backbone:
            raise ConfigurationError(
                "pretrain.method is set, and nothing of the model travels but its head.",
                why="It is the backbone that learns from pictures without labels.",
                remedy="Set model.train = 'all' or a stage, or pretrain.method = 'none'.",
            )
        kept, direction = (_with(remembered, prefix) for prefix in (_MODEL, _DIRECTION))
        projector = {n: a for n, a in kept.items() if n.startswith(PROJECTOR)}
        projector = projector or fresh_projector(feature_dim, settings, recipe.seed)
        self._tensors = {**backbone, **projector}
        self._specs: dict[str, TensorSpec] = {n: spec_of(a) for n, a in self._tensors.items()}
        check_round_weight(
            self._specs,
            recipe.wire,
            wanted(len(exchange.keys), recipe.federation.fraction),
        )
        self._recipe = recipe
        self._exchange = exchange
        self._state = state
        self._books = books
        self._standing = standing
        self._events = events
        self._history = UpdateHistory(
            recipe.federation, state.pretrain_screening, direction=direction
        )
        screening = Screening(
            self._specs,
            exchange.keys,
            recipe.wire.max_update_mb,
            max_weight=recipe.federation.max_weight,
            history=self._history,
            wire=recipe.wire,
        )
        self._intake = Intake(state, screening, books, standing, recipe.federation.deadline_s)
        self._outgoing = Outgoing(self._specs, recipe.wire)
        strategy = recipe.federation.strategy
        federation = recipe.federation.model_copy(
            update={"strategy": "fedavg" if strategy in _PLAIN else strategy}
        )
        self._strategy = make_strategy(federation, recipe.train, run_dir)
        self._strategy.begin(self._specs, len(exchange.keys))
        self._strategy.found = standing.found

    @property
    def done(self) -> bool:
        """Whether all its rounds are done."""
        return len(self._state.pretraining) >= self._recipe.pretrain.rounds

    @property
    def backbone(self) -> Tensors:
        """The model's tensors as they are now, without head and projector."""
        return {n: a for n, a in self._tensors.items() if not n.startswith(PROJECTOR)}

    def remember(self) -> Tensors:
        """What a checkpoint has to hold beside the model, until all is done."""
        if self.done:
            return {}
        kept = {n: a for n, a in self._tensors.items() if n.startswith(PROJECTOR)}
        return {_MODEL + n: a for n, a in kept.items()} | {
            _DIRECTION + n: a for n, a in self._history.direction.items()
        }

    def round(self, sites: list[str], draw: Draw) -> None:
        """One more round; a void one leaves the model as it was.

        Args:
            sites: Who is present.
            draw: Sites and a round's number to that round's cohort.

        Raises:
            RunFailed: if no quorum is found again and again, or no site is left.
        """
        started = time.monotonic()
        number = len(self._state.pretraining) + 1
        self._books.reset()
        in_use = self._standing.in_use(sites)
        if not in_use:
            raise nobody_left(number)
        cohort = draw(in_use, number)
        rounds = self._recipe.pretrain.rounds
        self._events.emit("pretraining_started", round=number, rounds=rounds, cohort=cohort)
        federation = self._recipe.federation
        sent = self._outgoing(to_array_record(pack_all(self._tensors)))
        self._books.open(sent)
        self._history.begin(self._outgoing.received(sent), self._rate(number))
        requests = [
            self._exchange.compose(
                "train", number, site, sent, phase="pretrain", **self._told(site)
            )
            for site in cohort
        ]
        needed = math.ceil(federation.quorum * wanted(len(in_use), federation.fraction) - 1e-9)
        self._strategy.needed = needed
        self._intake.refusals = {}
        accepted: list[Screened] = []
        answers = self._exchange.ask(requests, federation.deadline_s)
        replies = self._intake.sound(answers, accepted, self._specs)
        share = share_among(
            len(self._exchange.keys),
            federation.max_weight_share,
            weighs=self._strategy.weighs,
        )
        arrays, _ = self._strategy.aggregate_train(
            number, bounded(replies, share, number, self._events)
        )
        self._standing.close(number)
        self._books.close()
        if arrays is None or len(accepted) < needed:
            self._history.void()
            refusals = self._intake.refusals
            void_round(self._state, self._events, number, len(accepted), needed, refusals)
            return
        self._state.void_rounds = 0
        self._tensors = unpack_all(from_array_record(arrays), self._specs)
        self._history.close(self._tensors)
        digests = self._exchange.digests(arrays)
        entry = round_entry(number, cohort, accepted, self._books, digests, started)
        # What training alone has: it would be empty here.
        entry = {n: v for n, v in entry.items() if not n.endswith(("top1", "f1", "val_loss"))}
        self._state.pretraining.append(entry)
        self._events.emit("pretraining_finished", **entry)

    def _told(self, site: str) -> dict[str, Any]:
        return {
            "known_head": str(self._state.ledgers.get(site, [0, ""])[1]),
            "notice": self._standing.of(site)["notice"],
        }

    def _rate(self, number: int) -> Callable[[float], float]:
        settings = self._recipe.pretrain
        stretch = Stretch(number, settings.rounds)
        steps = steps_of(settings)
        return lambda examples: mean_rate(steps, stretch, max(round(examples), 1))


def _with(tensors: Tensors, prefix: str) -> Tensors:
    return {n.removeprefix(prefix): a for n, a in tensors.items() if n.startswith(prefix)}
