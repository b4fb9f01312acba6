"""Benchmark ``engine``: overhead of a simulated round over a bare training loop.

A federated round and a bare loop over the same work are timed alternately in one process tree, and
medians are compared; the first round of each is warm-up.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import torch

from fgvc_core.data.cache import cache_folder
from fgvc_core.recipe import Recipe, parse_recipe
from fieldmark.simulations.bench import figure
from fieldmark.simulations.bench.floor import BareLoop
from fieldmark.simulations.engines import run_ray
from fieldmark.simulations.folders import lay_out, site_homes
from fieldmark.simulations.grid import InProcessGrid
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import Setting, deal, prepare, split_site
from fieldmark.simulations.workers import PRELOAD, make_pool

ROUNDS = 8
RAY_ROUNDS = 5
STARTUPS = 3
SITES = (10, 50)
PICTURES_A_SITE = 120
UPDATE_MB = 45
MEMORY_SITES = (10, 50, 100)

RECIPE = """
name = "bench-engine"
[data]
name = "fieldmarks"
image_size = 64
fieldmarks_test = 12
[model]
backbone = "fieldmark_nano"
[train]
epochs = 1
batch_size = 16
[federation]
rounds = {rounds}
[partition]
scheme = "iid"
sites = {sites}
[evaluate]
every = 0
pixel_baseline = false
"""


@dataclass
class Timed:
    """Seconds per round: wall and CPU time of the federation, and of the bare loop."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    floor_wall: list[float] = field(default_factory=list)
    floor_cpu: list[float] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Median without the first round."""
        return statistics.median(getattr(self, name)[1:])


def bench_engine() -> dict[str, Any]:
    """The figures of ``fieldmark bench engine``."""
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    for sites in SITES:
        recipe = _recipe(sites, ROUNDS)
        tail = "" if sites == SITES[0] else f"_{sites}_sites"
        one, two = _timed(recipe, 1), _timed(recipe, 2)
        figures[f"cpu_one_worker{tail}"] = figure(
            one.median("cpu"),
            one.median("floor_cpu"),
            "CPU s a round",
            f"{sites} sites, one worker, against the bare loop; median of {ROUNDS - 1} rounds, "
            "alternating",
        )
        figures[f"wall_two_workers{tail}"] = figure(
            two.median("wall"),
            two.median("floor_wall"),
            "s a round",
            f"{sites} sites, two workers, against the bare loop on one core; median of "
            f"{ROUNDS - 1} rounds, alternating",
        )
        ray = _ray_round_seconds(_recipe(sites, RAY_ROUNDS))
        figures[f"wall_vs_ray{tail}"] = figure(
            two.median("wall"),
            ray,
            "s a round",
            f"{sites} sites, two workers, against the same apps through Flower on Ray with two "
            "actors; medians without the first round",
        )
        if sites == SITES[0]:
            figures["startup_s"] = figure(
                _startup_seconds(recipe),
                None,
                "s",
                "a fresh process, from the recipe to the first round (workers, keys, homes, roll "
                "call), less what the same imports take in a process of their own; median of 3",
            )
    figures.update(_memory_figures())
    return figures


def _recipe(sites: int, rounds: int) -> Recipe:
    text = RECIPE.format(rounds=rounds, sites=sites)
    return parse_recipe(text, [f"data.fieldmarks_train={sites * PICTURES_A_SITE}"])


def _timed(recipe: Recipe, workers: int) -> Timed:
    """Run a federation and, after each of its rounds, one round of the bare loop."""
    setting, timed = deal(recipe, cache_folder()), Timed()
    with make_pool(2) as pool:
        prepare(recipe, setting, pool, lambda done, total: None)
    floor = BareLoop(recipe, [split_site(recipe, setting, s) for s in sorted(setting.rows)])
    with tempfile.TemporaryDirectory() as folder:
        plan = Simulation(recipe, Path(folder) / "run")
        lay_out(plan, setting)
        with make_pool(workers) as pool:
            listener = _alternate(timed, floor.round)
            run_quietly(plan, setting, pool, workers, listener)
    return timed


def run_quietly(
    plan: Simulation,
    setting: Setting,
    pool: Executor,
    workers: int,
    listener: Callable[[dict[str, Any]], None],
) -> None:
    """Run a federation on the in-process grid without terminal output."""
    from fieldmark.server.run import run_federation

    homes = site_homes(plan, setting)
    grid = InProcessGrid(pool, [{"site-home": str(home)} for home in homes], workers)
    run_federation(grid, plan.out, (listener,), quiet=True)


def _alternate(timed: Timed, floor_round: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    mark = {"wall": 0.0, "cpu": 0.0}

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "round_started":
            mark["wall"], mark["cpu"] = time.monotonic(), tree_cpu()
        elif event["event"] == "round_finished":
            timed.wall.append(time.monotonic() - mark["wall"])
            timed.cpu.append(tree_cpu() - mark["cpu"])
            wall, cpu = time.monotonic(), time.process_time()
            floor_round()
            timed.floor_wall.append(time.monotonic() - wall)
            timed.floor_cpu.append(time.process_time() - cpu)

    return listen


def tree_cpu() -> float:
    """CPU seconds of this process and its workers so far."""
    total = time.process_time()
    ticks = os.sysconf("SC_CLK_TCK")
    for child in active_children():
        try:
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def _ray_round_seconds(recipe: Recipe) -> float:
    """Median seconds per round, after the first, with Flower on Ray."""
    import json

    setting = deal(recipe, cache_folder())
    with tempfile.TemporaryDirectory() as folder:
        plan = replace(Simulation(recipe, Path(folder) / "run"), engine="ray")
        lay_out(plan, setting)
        run_ray(plan.out, site_homes(plan, setting), 2)
        metrics = json.loads((plan.out / "metrics.json").read_text(encoding="utf-8"))
    return statistics.median([entry["seconds"] for entry in metrics["history"]][1:])


def _startup_seconds(recipe: Recipe) -> float:
    """Seconds before the first round, beyond those of the imports."""
    imports = ";".join(f"import {name}" for name in (*PRELOAD, "fieldmark.simulations.simulate"))
    beyond = []
    for _ in range(STARTUPS):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", imports], check=True)
        alone = time.monotonic() - began
        command = [sys.executable, "-m", "fieldmark.simulations.bench.startup", recipe.to_toml()]
        whole = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        beyond.append(max(whole - alone, 0.0))
    return statistics.median(beyond)


def _memory_figures() -> dict[str, Any]:
    peaks = {sites: _peak_memory(sites) for sites in MEMORY_SITES}
    how = (
        f"peak resident memory of the coordinator above its start, folding in updates of "
        f"{UPDATE_MB} MB"
    )
    few = peaks[MEMORY_SITES[0]]
    return {
        f"memory_{sites}_vs_10_sites": figure(
            peaks[sites] / 1e6, few / 1e6, "MB", f"{how}: {sites} sites against 10"
        )
        for sites in MEMORY_SITES[1:]
    }


def _peak_memory(sites: int) -> int:
    command = [
        sys.executable,
        "-m",
        "fieldmark.simulations.bench.memory",
        str(sites),
        str(UPDATE_MB),
    ]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
