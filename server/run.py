"""One run from its folder to its results: open or resume it, run all rounds, write the results."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from uuid import uuid4

import torch
from flwr.serverapp import Grid
from rich.console import Console

from fgvc_core.errors import (
    ConfigurationError,
    FieldmarkError,
    PolicyRefusal,
    RunInterrupted,
)
from fgvc_core.experiment import make_learner, make_table, pick_device
from fgvc_core.models.weight_names import resolve_weights
from fgvc_core.training.learner import Learner
from fgvc_core.words import counted
from fieldmark.server.home import CoordinatorHome
from fieldmark.server.live import LiveView
from fieldmark.server.results.evaluation import TestSplit
from fieldmark.server.results.write import write_interrupted, write_results
from fieldmark.server.rounds.loop import Rounds
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState, Tensors
from fieldmark.server.run_log.events import EventLog, Listener
from fieldmark.server.tracking import Tracking, read_track


def run_federation(
    grid: Grid, run_dir: Path, listeners: tuple[Listener, ...] = (), *, quiet: bool = False
) -> None:
    """Run, or resume, the federation in a run's folder.

    Args:
        grid: Any Flower grid.
        run_dir: The run's folder, as :func:`fieldmark.server.home.write_home` creates it.
        listeners: Called with every event.
        quiet: Show nothing on the terminal.

    Raises:
        RunInterrupted: if a person stopped it; the last checkpoint is intact.
        FieldmarkError: for every other failure.
    """
    # Large aggregations start their own threads, one per core.
    torch.set_num_threads(1)
    home = CoordinatorHome.open(run_dir)
    _refuse_scenario(home)
    live = LiveView(home.recipe, Console(stderr=True, quiet=quiet))
    events = _event_log(home, listeners if quiet else (live, *listeners))
    learner = _learner(home)
    tensors, state, remembered = _begun(home, events, learner.tensors())
    test = _test_split(home, learner)
    rounds = Rounds(grid, home, state, tensors, test, events, remembered, learner.model.feature_dim)
    with live, _stop_cleanly():
        _run_all(home, rounds, events, learner, test)


def _refuse_scenario(home: CoordinatorHome) -> None:
    """Refuse faults and attacks outside a simulation."""
    if home.recipe.scenario is not None and home.settings.engine != "inprocess":
        raise ConfigurationError(
            f"The recipe has a [scenario], and this run's engine is '{home.settings.engine}'.",
            why="Faults and attacks happen in simulations on this machine, never in a federation.",
            remedy="Take [scenario] out, or simulate with --engine inprocess.",
        )


def _event_log(home: CoordinatorHome, listeners: tuple[Listener, ...]) -> EventLog:
    """The run's event log, which also tells the trackers that the settings name."""
    choices = read_track(home.settings.track)
    trackers = [Tracking(choices, home.run_dir, home.recipe)] if choices else []
    events = EventLog(home.run_dir / "events.jsonl", (*listeners, *trackers))
    for tracking in trackers:
        tracking.report_to(events)
    return events


def _learner(home: CoordinatorHome) -> Learner:
    """The recipe's learner, from the public weights in the coordinator's folder."""
    folders = [] if home.settings.weights is None else [Path(home.settings.weights)]
    weights = resolve_weights(home.recipe.model.weights, folders)
    device = pick_device(home.settings.device)
    return make_learner(home.recipe, len(home.class_names), device, weights)


def _begun(
    home: CoordinatorHome, events: EventLog, initial: Tensors
) -> tuple[Tensors, RunState, Tensors]:
    """Begin the run, or go on after its last checkpoint.

    Returns:
        The model, the state, and the tensors that the server remembers between rounds.
    """
    checkpoints = Checkpoints(home.run_dir, home.recipe, home.class_names)
    if checkpoints.exists("last"):
        tensors, state = checkpoints.read("last")
        moved = events.cut(state.events)
        events.emit("resumed", run=state.run, round=state.round, events_cut=moved)
        return tensors, state, checkpoints.remembered("last")
    state = RunState(run=uuid4().hex)
    events.cut(0)
    events.emit(
        "run_started",
        run=state.run,
        recipe_digest=home.recipe.digest,
        sites=list(home.allow_list),
        strategy=home.recipe.federation.strategy,
        rounds=home.recipe.federation.rounds,
        engine=home.settings.engine,
    )
    return initial, state, {}


def _test_split(home: CoordinatorHome, learner: Learner) -> TestSplit | None:
    """The coordinator's test split; None without one, or without a complete model to score."""
    recipe, cache = home.recipe, Path(home.settings.cache)
    # If some tensors stay at the sites, the coordinator has no complete model.
    if not home.settings.test or recipe.federation.local:
        return None
    data = recipe.data.model_copy(update={"path": home.settings.data_path})
    table = make_table(recipe.model_copy(update={"data": data}), cache).where("test")
    return TestSplit(table, learner, cache, recipe.evaluate.batch_size) if len(table) else None


def _run_all(
    home: CoordinatorHome,
    rounds: Rounds,
    events: EventLog,
    learner: Learner,
    test: TestSplit | None,
) -> None:
    """Run all rounds and write the results, also those of a run that was stopped or refused."""
    try:
        reason = rounds.run()
    except KeyboardInterrupt:
        events.emit("interrupted", round=rounds.state.round)
        write_interrupted(home, rounds.state, learner)
        raise RunInterrupted(
            "The run was stopped; "
            f"{counted(rounds.state.round, 'round is', 'rounds are')} in its checkpoint.",
            remedy=f"Go on with: fieldmark simulate RECIPE --out {home.run_dir} --resume",
        ) from None
    except FieldmarkError as error:
        if isinstance(error, PolicyRefusal):
            write_interrupted(home, rounds.state, learner, f"refused: {error.what}")
        events.emit("failed", round=rounds.state.round, reason=error.what)
        raise
    write_results(home, rounds.state, reason, learner, test)
    events.emit("run_finished", reason=reason, rounds=rounds.state.round)


@contextmanager
def _stop_cleanly() -> Iterator[None]:
    """Make SIGTERM end a run like Ctrl-C; possible in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
