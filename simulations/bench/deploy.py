"""Benchmark ``deploy``: a tiny deployed round, 100 MB beside stock Flower, and idle services."""

import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from fgvc_core.recipe import parse_recipe
from fieldmark.simulations.bench import figure
from fieldmark.simulations.bench.bulk import bulk_rounds
from fieldmark.simulations.bench.idle import WATCHED_S, Idle, measure_idle
from fieldmark.simulations.bench.stock import stock_rounds

TINY = """
name = "tiny"
[data]
image_size = 32
fieldmarks_train = 60
fieldmarks_test = 48
[partition]
scheme = "iid"
sites = 2
[model]
backbone = "fieldmark_nano"
[train]
schedule = "constant"
[federation]
rounds = 11
[evaluate]
pixel_baseline = false
every = 0
"""


def bench_deploy() -> dict[str, Any]:
    """The figures of ``fieldmark bench deploy``."""
    with tempfile.TemporaryDirectory() as folder:
        tiny = _tiny_rounds(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        ours = bulk_rounds(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        stock = stock_rounds(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        coordinator, site = measure_idle(Path(folder))
    return {
        **idle_figures(coordinator, site),
        "round_s": figure(
            statistics.median(tiny[1:]),
            None,
            "s",
            f"median of {len(tiny) - 1} rounds after the first: fieldmark_nano, two sites, "
            "TLS, keys, gateway, SQLite; it learns and scores in each",
        ),
        "bulk_vs_stock": figure(
            statistics.median(ours[1:]),
            statistics.median(stock[1:]),
            "s",
            f"100 MB each way, two sites, no learning, median of {len(ours) - 1} rounds after "
            "the first; stock Flower over TLS with keys and SQLite, without a gateway",
        ),
    }


def idle_figures(coordinator: Idle, site: Idle) -> dict[str, Any]:
    """Figures of a coordinator and a site that wait for a run."""
    both = {"coordinator": coordinator, "site": site}
    figures = {
        f"idle_{name}_mb": figure(
            idle.mb,
            None,
            "MB",
            f"{idle.processes} processes together, after their start and before any run: "
            "proportional set size, /proc/PID/smaps_rollup",
        )
        for name, idle in both.items()
    }
    each = ", ".join(f"{name} {idle.cpu_percent:.2f}" for name, idle in both.items())
    figures["idle_cpu_percent"] = figure(
        max(idle.cpu_percent for idle in both.values()),
        None,
        "%",
        f"the larger of {each}: user and system time of all processes of a side in "
        f"{WATCHED_S:g} s, of one core; one site is connected",
    )
    return figures


def _tiny_rounds(folder: Path) -> list[float]:
    from fieldmark.simulations.planning import Simulation
    from fieldmark.simulations.simulate import simulate

    # Hide the run's own progress.
    with contextlib.redirect_stderr(io.StringIO()):
        simulate(Simulation(parse_recipe(TINY), folder / "run", "superlink"))
    metrics = json.loads((folder / "run" / "metrics.json").read_text(encoding="utf-8"))
    return [entry["seconds"] for entry in metrics["history"]]
