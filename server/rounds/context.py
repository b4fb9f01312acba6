"""What the rounds of a run are made of, put together once from its folder."""

import math
from dataclasses import dataclass

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fgvc_core.flower.records import from_array_record
from fgvc_core.inference.taxonomy import taxonomy_of
from fgvc_core.protocol.tensor_names import check_local, local, shared
from fgvc_core.recipe import Recipe
from fgvc_core.wire.arrays import TensorSpec, spec_of, unpack_all
from fieldmark.server.home import CoordinatorHome
from fieldmark.server.results.evaluation import TestSplit
from fieldmark.server.rounds.memory import recall
from fieldmark.server.rounds.pace import Pace
from fieldmark.server.rounds.requests import Asking
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState, Tensors
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.screening.checks import Screening
from fieldmark.server.screening.comparison import UpdateHistory
from fieldmark.server.screening.late import LateReplies
from fieldmark.server.screening.replies import Intake
from fieldmark.server.screening.tally import Books
from fieldmark.server.screening.trust import Standing
from fieldmark.server.sites.messages import Exchange
from fieldmark.server.sites.outgoing import Outgoing
from fieldmark.server.strategies import StreamingFedAvg, make_strategy


@dataclass(frozen=True)
class Parts:
    """One run's parts, which know each other.

    Attributes:
        grid: Any Flower grid.
        recipe: What is run.
        state: As the last checkpoint holds it; changed in place.
        events: Where events go.
        test: The coordinator's test split, or None.
        class_count: K.
        local: Tensors that are the sites' own; the coordinator's stay as they were.
        specs: What the travelling tensors must be.
    """

    grid: Grid
    recipe: Recipe
    state: RunState
    events: EventLog
    test: TestSplit | None
    class_count: int
    local: Tensors
    specs: dict[str, TensorSpec]
    pace: Pace
    exchange: Exchange
    history: UpdateHistory
    books: Books
    standing: Standing
    outgoing: Outgoing
    intake: Intake
    late: LateReplies
    strategy: StreamingFedAvg
    asking: Asking
    checkpoints: Checkpoints

    def quorum(self, asked: int) -> int:
        """How many sound replies a round of so many needs."""
        return math.ceil(self.recipe.federation.quorum * asked - 1e-9)

    def unpacked(self, arrays: ArrayRecord) -> Tensors:
        """The travelling tensors of a model."""
        return unpack_all(from_array_record(arrays), self.specs)

    def whole(self, arrays: ArrayRecord) -> Tensors:
        """A model with the coordinator's own copy of what does not travel."""
        return {**self.local, **self.unpacked(arrays)}


def assemble(
    grid: Grid,
    home: CoordinatorHome,
    state: RunState,
    tensors: Tensors,
    test: TestSplit | None,
    events: EventLog,
    remembered: Tensors,
) -> Parts:
    """Put a run's parts together.

    Args:
        grid: Any Flower grid.
        home: The run's folder.
        state: A fresh state, or a checkpoint's.
        tensors: The model that the next round starts from.
        test: The coordinator's test split, or None.
        events: Where events go.
        remembered: What the checkpoint's server remembered as tensors.

    Raises:
        ConfigurationError: if ``federation.local`` leaves nothing to travel, or names nothing.
    """
    recipe, federation = home.recipe, home.recipe.federation
    check_local(list(tensors), federation.local)
    specs = {name: spec_of(a) for name, a in shared(tensors, federation.local).items()}
    pace = Pace(recipe)
    exchange = Exchange(grid, home, state.run, events)
    history = UpdateHistory(federation, state.screening, waits=pace.waits)
    books = Books(state, events)
    standing = Standing(state.standing, federation.set_aside_after, events)
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
        claims=state.claims,
    )
    for site in exchange.keys:
        # Known from earlier runs: the first request names it, and no reply may be of less.
        seen = exchange.ledgers.head(site)
        if seen is not None and seen.length >= int(state.ledgers.get(site, [0, ""])[0]):
            state.ledgers[site] = [seen.length, seen.head]
    intake = Intake(state, screening, books, standing, federation.deadline_s)
    outgoing = Outgoing(specs, recipe.wire)
    strategy = make_strategy(federation, recipe.train, home.run_dir)
    strategy.begin(specs, len(home.allow_list))
    strategy.found = standing.found
    recall(remembered, strategy, history)
    keeps = bool(strategy.keeps or federation.local or recipe.wire.top_k)
    known = None if test is None else taxonomy_of(test.table)
    return Parts(
        grid=grid,
        recipe=recipe,
        state=state,
        events=events,
        test=test,
        class_count=len(home.class_names),
        local=local(tensors, federation.local),
        specs=specs,
        pace=pace,
        exchange=exchange,
        history=history,
        books=books,
        standing=standing,
        outgoing=outgoing,
        intake=intake,
        late=LateReplies(federation.late == "mix", exchange, intake, books, history, pace),
        strategy=strategy,
        asking=Asking(exchange, strategy, outgoing, books, standing, state, keeps),
        checkpoints=Checkpoints(home.run_dir, recipe, home.class_names, known),
    )
