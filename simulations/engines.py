"""The engines of a simulated run: worker processes, Flower on Ray, or a local SuperLink.

The SuperLink engine is in ``superlink.py``.
"""

import logging
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, Literal

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fgvc_core.errors import ConfigurationError, RunFailed
from fgvc_core.proxies import environment

if TYPE_CHECKING:
    from fieldmark.simulations.grid import InProcessGrid

Engine = Literal["inprocess", "ray", "superlink"]
ENGINES: tuple[Engine, ...] = ("inprocess", "ray", "superlink")
POLL_S: dict[Engine, float] = {"inprocess": 0.001, "ray": 0.02, "superlink": 0.25}
"""Interval between polls for a reply, in seconds."""
ROLL_CALL_S: dict[Engine, float] = {"inprocess": 86_400.0, "ray": 86_400.0, "superlink": 300.0}
"""How long a roll call waits for silent sites, in seconds. If a worker answers for many sites,
none is silent, and the result must not depend on the machine's speed."""
STOP_WITHIN_S = 120.0


def run_inprocess(
    run_dir: Path, homes: list[Path], executor: Executor, workers: int, *, quiet: bool = False
) -> None:
    """Run the two apps on the in-process grid; ``quiet`` suppresses terminal output."""
    from fieldmark.server.app import app

    grid = _grid(run_dir, homes, executor, workers)
    context = Context(
        grid.run.run_id, 1, {}, RecordDict(), {"run-dir": str(run_dir), "quiet": quiet}
    )
    try:
        app(grid, context)
    except BrokenProcessPool:
        raise RunFailed(
            "A worker process died.",
            why="The round it worked on is lost; the last checkpoint is whole.",
            remedy="Often memory ran out: use fewer or smaller pictures, then --resume.",
        ) from None


def _grid(run_dir: Path, homes: list[Path], executor: Executor, workers: int) -> "InProcessGrid":
    from fgvc_core.recipe import load_recipe
    from fieldmark.simulations.grid import InProcessGrid
    from fieldmark.simulations.scenarios import FaultyGrid

    recipe = load_recipe(run_dir / "recipe.toml")
    if recipe.scenario is not None:
        return FaultyGrid(executor, homes, workers, recipe, run_dir / "scenario.json")
    return InProcessGrid(executor, [{"site-home": str(home)} for home in homes], workers)


def run_ray(run_dir: Path, homes: list[Path], workers: int) -> None:
    """Run the same two apps through Flower's simulation on Ray.

    Raises:
        ConfigurationError: if Ray is not installed.
        RunInterrupted: if a person stopped it; the last checkpoint is intact.
        FieldmarkError: for every other failure.
    """
    try:
        import ray
    except ImportError:
        raise ConfigurationError(
            "--engine ray needs Ray, which is not installed.",
            remedy="pip install 'fieldmark[simulation]', or use --engine inprocess.",
        ) from None
    from flwr.simulation import run_simulation

    from fieldmark.client.app import HOMES_VARIABLE
    from fieldmark.client.app import app as client_app
    from fieldmark.server.app import RUN_VARIABLE
    from fieldmark.server.app import app as server_app

    # Flower warns that run_simulation is deprecated, and whenever an actor ends normally.
    logging.getLogger("flwr").setLevel(logging.ERROR)
    watch = _Watch(server_app)
    variables = {
        RUN_VARIABLE: str(run_dir.resolve()),
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with TemporaryDirectory() as nodes, environment({**variables, HOMES_VARIABLE: nodes}):
        for home in homes:
            # Nodes are numbered within this folder; --sites may contain other runs' sites, too.
            (Path(nodes) / home.name).symlink_to(home.resolve())
        try:
            with watch.interrupted_by_hand():
                run_simulation(
                    server_app=watch.app,
                    client_app=client_app,
                    num_supernodes=len(homes),
                    backend_config={
                        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                        "init_args": {"num_cpus": workers, "include_dashboard": False},
                    },
                )
        except (KeyboardInterrupt, SystemExit):
            # Otherwise the ServerApp's thread would wait forever for its dead nodes.
            watch.stop()
            raise
        finally:
            ray.shutdown()


class _Watch:
    """Runs a ServerApp in Flower's thread so that it can be stopped.

    Args:
        app: The app to run.
    """

    def __init__(self, app: ServerApp) -> None:
        self.app = ServerApp()
        self.app.main()(self._run)
        self._inner = app
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._error: BaseException | None = None

    @contextmanager
    def interrupted_by_hand(self) -> Iterator[None]:
        """Make the first Ctrl-C stop the app, so that Flower ends in an orderly way.

        An exception within Flower would shut Ray down under running tasks. A second Ctrl-C raises
        KeyboardInterrupt.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(signum: int, frame: FrameType | None) -> None:
            if self._stopping.is_set():
                raise KeyboardInterrupt
            self._stopping.set()

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def stop(self) -> None:
        """Stop the app at its next poll for replies; raises the app's error, if any."""
        self._stopping.set()
        self._ended.wait(STOP_WITHIN_S)
        if self._error is not None:
            raise self._error from None

    def _run(self, grid: Grid, context: Context) -> None:
        pull = grid.pull_messages

        def pull_unless_stopped(message_ids: Iterable[str]) -> Iterable[Message]:
            if self._stopping.is_set():
                raise KeyboardInterrupt
            return pull(message_ids)

        grid.pull_messages = pull_unless_stopped  # type: ignore[method-assign]
        try:
            self._inner(grid, context)
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._ended.set()
