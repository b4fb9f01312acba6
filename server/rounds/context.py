"""Objects that the stages of one run share, built once from the run's folder."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fgvc_core.flower.records import from_array_record
from fgvc_core.inference.taxonomy import taxonomy_of
from fgvc_core.protocol.keys import fingerprint
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.protocol.tensor_names import check_local, local, shared
from fgvc_core.recipe import Recipe
from fgvc_core.secure.ready import context_of
from fgvc_core.training.loop import Stretch, mean_rate
from fgvc_core.wire.arrays import TensorSpec, spec_of, unpack_all
from fieldmark.server.home import CoordinatorHome
from fieldmark.server.results.evaluation import TestSplit
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState, Tensors
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.screening.checks import Screening
from fieldmark.server.screening.comparison import UpdateHistory
from fieldmark.server.screening.replies import LateReplies, ReplyScreening
from fieldmark.server.screening.tally import Tally
from fieldmark.server.screening.trust import SiteTrust
from fieldmark.server.sites.messages import Exchange, Outgoing
from fieldmark.server.strategies import Strategy, make_strategy

ROUNDS_LOOKED_AT = 8
"""Most rounds, of those whose changes an update may contain, for which rates are computed."""

Rate = Callable[[int], Callable[[float], float]]
"""Round -> (examples -> mean learning rate of such a site's steps in it)."""


@dataclass(frozen=True)
class Updates:
    """How one set of tensors is learned; training and pre-training each have one.

    Attributes:
        specs: The tensors that are exchanged.
        outgoing: Encodes them for the sites.
        history: Compares updates with those of earlier rounds.
        replies: Screens replies.
        strategy: Aggregates accepted updates.
        rate: Learning rate that update norms are divided by.
        late: Finds replies to earlier rounds; None: late replies are ignored.
        keeps: Whether sites keep state from round to round.
    """

    specs: dict[str, TensorSpec]
    outgoing: Outgoing
    history: UpdateHistory
    replies: ReplyScreening
    strategy: Strategy
    rate: Rate
    late: LateReplies | None = None
    keeps: bool = False

    def unpacked(self, arrays: ArrayRecord) -> Tensors:
        """The model's tensors in the form that is aggregated."""
        return unpack_all(from_array_record(arrays), self.specs)


@dataclass(frozen=True)
class RunContext:
    """Objects that the stages of one run share.

    Attributes:
        home: The run's folder.
        state: The run's state; changed in place.
        events: The event log.
        test: The coordinator's test split, or None.
        local: Tensors that stay at the sites; the coordinator's copies never change.
        exchange: Sends and receives messages.
        tally: Counts messages and bytes.
        trust: How each site's replies were judged.
        checkpoints: The run's.
    """

    home: CoordinatorHome
    state: RunState
    events: EventLog
    test: TestSplit | None
    local: Tensors
    exchange: Exchange
    tally: Tally
    trust: SiteTrust
    checkpoints: Checkpoints

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        return self.home.recipe


def make_context(
    grid: Grid,
    home: CoordinatorHome,
    state: RunState,
    tensors: Tensors,
    test: TestSplit | None,
    events: EventLog,
) -> RunContext:
    """Build the shared objects of a run.

    Args:
        grid: Any Flower grid.
        home: The run's folder.
        state: A new state, or a checkpoint's.
        tensors: The model that the next round starts from.
        test: The coordinator's test split, or None.
        events: The event log.

    Raises:
        ConfigurationError: if ``federation.local`` leaves nothing to exchange, or matches nothing.
    """
    recipe, federation = home.recipe, home.recipe.federation
    check_local(list(tensors), federation.local)
    exchange = Exchange(grid, home, state.run, events)
    for site in exchange.keys:
        # Known from earlier runs: the first request names it, and a reply with a shorter
        # ledger is refused.
        seen = exchange.ledgers.head(site)
        if seen is not None and seen.length >= int(state.ledgers.get(site, [0, ""])[0]):
            state.ledgers[site] = [seen.length, seen.head]
    known = None if test is None else taxonomy_of(test.table)
    return RunContext(
        home=home,
        state=state,
        events=events,
        test=test,
        local=local(tensors, federation.local),
        exchange=exchange,
        tally=Tally(state, events),
        trust=SiteTrust(state.standing, federation.set_aside_after, events),
        checkpoints=Checkpoints(home.run_dir, recipe, home.class_names, known),
    )


def training_updates(context: RunContext, tensors: Tensors, remembered: Tensors) -> Updates:
    """Updates of the training stage.

    Args:
        context: The run's.
        tensors: The model that the next round starts from.
        remembered: From a checkpoint, by :func:`remember`; empty in a new run.
    """
    recipe, federation = context.recipe, context.recipe.federation
    # With top-k a site accumulates unsent changes over about this many rounds.
    waits = math.ceil(1 / recipe.wire.top_k) if recipe.wire.top_k else 1
    moved = under(remembered, "direction/")
    judged = federation
    if recipe.secure is not None:
        # Of a sum only the length is judged: no site of it can be told that it was idle.
        judged = federation.model_copy(update={"min_norm_ratio": 0.0, "direction_spread": 0.0})
    updates = make_updates(
        context,
        {name: spec_of(a) for name, a in shared(tensors, federation.local).items()},
        federation,
        training_rate(recipe, waits),
        UpdateHistory(judged, context.state.screening, direction=moved, waits=waits),
    )
    restored = under(remembered, "strategy/")
    if restored:
        updates.strategy.restore(restored)
    return replace(
        updates,
        late=LateReplies(
            federation.late == "mix",
            context.exchange,
            updates.replies,
            context.tally,
            updates.history,
            updates.rate,
        ),
        keeps=bool(updates.strategy.keeps or federation.local or recipe.wire.top_k),
    )


def make_updates(
    context: RunContext,
    specs: dict[str, TensorSpec],
    federation: FederationSettings,
    rate: Rate,
    history: UpdateHistory,
) -> Updates:
    """Build the screening and the strategy for one set of tensors.

    Args:
        context: The run's.
        specs: The tensors.
        federation: Names the strategy.
        rate: Learning rate that update norms are divided by.
        history: Earlier updates to compare with.
    """
    recipe, exchange = context.recipe, context.exchange
    screening = Screening(
        specs,
        exchange.keys,
        recipe.wire.max_update_mb,
        protected=recipe.privacy is not None,
        max_weight=federation.max_weight,
        history=history,
        wire=recipe.wire,
        ledgers=exchange.ledgers,
        units=exchange.units,
        claims=context.state.claims,
        context=partial(
            context_of,
            coordinator=fingerprint(context.home.key.public_key()),
            class_names=context.home.class_names,
        ),
    )
    strategy = make_strategy(federation, recipe.train, context.home.run_dir)
    strategy.begin(specs, len(exchange.keys))
    return Updates(
        specs=specs,
        outgoing=Outgoing(specs, recipe.wire),
        history=history,
        replies=ReplyScreening(
            context.state, screening, context.tally, context.trust, federation.deadline_s
        ),
        strategy=strategy,
        rate=rate,
    )


def remember(updates: Updates) -> Tensors:
    """Tensors that a checkpoint keeps beside the model.

    They are optimizer moments or control variates, and the model's last movement.
    """
    kept = {f"strategy/{name}": array for name, array in updates.strategy.state().items()}
    return kept | {f"direction/{name}": a for name, a in updates.history.direction.items()}


def training_rate(recipe: Recipe, waits: int) -> Rate:
    """Mean learning rates of a site's steps in a round of training.

    Args:
        recipe: Its ``[train]`` and ``[federation]`` are used.
        waits: Number of rounds whose changes an update may contain; the round with the highest rate
            counts.
    """

    def at(number: int) -> Callable[[float], float]:
        earliest = max(1, number - waits + 1)
        step = math.ceil((number - earliest + 1) / ROUNDS_LOOKED_AT)
        rounds = recipe.federation.rounds
        stretches = [Stretch(n, rounds) for n in range(number, earliest - 1, -step)]

        def rate(examples: float) -> float:
            count = max(round(examples), 1)
            return max(mean_rate(recipe.train, stretch, count) for stretch in stretches)

        return rate

    return at


def under(tensors: Tensors, prefix: str) -> Tensors:
    """Tensors whose names begin with a prefix, without the prefix."""
    return {n.removeprefix(prefix): a for n, a in tensors.items() if n.startswith(prefix)}
