"""What carries the messages of a simulated run: worker processes here, or Flower on Ray."""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from flwr.app import Context, RecordDict

from fgvc_core.errors import ConfigurationError, RunFailed

Engine = Literal["inprocess", "ray"]
ENGINES: tuple[Engine, ...] = ("inprocess", "ray")


def run_inprocess(run_dir: Path, homes: list[Path], executor: Executor, workers: int) -> None:
    """Run the two apps on the in-process grid."""
    from server.app import app
    from simulations.grid import InProcessGrid

    grid = InProcessGrid(executor, [{"site-home": str(home)} for home in homes], workers)
    context = Context(grid.run.run_id, 1, {}, RecordDict(), {"run-dir": str(run_dir)})
    try:
        app(grid, context)
    except BrokenProcessPool:
        raise RunFailed(
            "A worker process died.",
            why="The round it worked on is lost; the last checkpoint is whole.",
            remedy="Often memory ran out: use fewer or smaller pictures, then --resume.",
        ) from None


def run_ray(run_dir: Path, homes: list[Path], workers: int) -> None:
    """Run the same two apps through Flower's simulation on Ray.

    Raises:
        ConfigurationError: if Ray is not installed.
        RunFailed: if Flower's runtime gives up.
    """
    try:
        import ray
    except ImportError:
        raise ConfigurationError(
            "--engine ray needs Ray, which is not installed.",
            remedy="pip install 'fieldmark[simulation]', or use --engine inprocess.",
        ) from None
    from flwr.simulation import run_simulation

    from client.app import HOMES_VARIABLE
    from client.app import app as client_app
    from server.app import RUN_VARIABLE
    from server.app import app as server_app

    # Flower warns of run_simulation's age and of every actor that ends in its turn.
    logging.getLogger("flwr").setLevel(logging.ERROR)
    root = homes[0].parent
    variables = {
        HOMES_VARIABLE: str(root.resolve()),
        RUN_VARIABLE: str(run_dir.resolve()),
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with _environment(variables):
        try:
            run_simulation(
                server_app=server_app,
                client_app=client_app,
                num_supernodes=len(homes),
                backend_config={
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                    "init_args": {"num_cpus": workers, "include_dashboard": False},
                },
            )
        finally:
            ray.shutdown()


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Ray's workers inherit the environment that they are started in."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
