"""Benchmark ``scale``: how cost grows with sites, pictures, classes and the size of the model.

Each cost is measured at four sizes that double, each in a process of its own, and log(cost) is
fitted as a line in log(size): the slope is the exponent p of cost ~ size**p. Where the work is
linear, p is at most 1; what does not depend on the size at all makes it smaller.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgvc_core.privacy.class_sums import counted_sums, sums_bound, unit_vectors
from fgvc_core.privacy.noise import make_grid, release
from fieldmark.simulations.bench import figure
from fieldmark.simulations.bench.aggregation import write_updates

MOST = 1.05
"""Largest exponent that linear work may show."""

SITES = (25, 50, 100, 200)
PICTURES = (30, 60, 120, 240)
CLASSES = (200, 400, 800, 1600)
MEGABYTES = (10, 20, 40, 80)
ROUNDS = 3
DIRECTIONS = 64
REPLIES = 10
UNITS = 4000


def bench_growth(say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The figures of ``fieldmark bench scale``: exponents, against the largest allowed."""
    return {**_sites(say), **_pictures(say), **_classes(say), **_model(say)}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of log(cost) over log(size), by least squares.

    >>> round(exponent([1, 2, 4], [3.0, 12.0, 48.0]), 6)
    2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(costs, 1e-12)), 1)[0])


def growth(name: str, unit: str, what: str, costs: Mapping[int, float]) -> dict[str, Any]:
    """One exponent as a figure, with the costs that it was fitted on."""
    sizes = list(costs)
    found = exponent(sizes, list(costs.values()))
    told = ", ".join(f"{size}: {cost:.4g} {unit}" for size, cost in costs.items())
    return {name: figure(found, MOST, "exponent", f"{what}; {told}")}


def _run(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", *(str(each) for each in arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _simulated(sites: int, pictures: int) -> dict[str, Any]:
    return _run("fieldmark.simulations.bench.scale", sites, sites, ROUNDS, pictures)


def _sites(say: Callable[[str], None]) -> dict[str, Any]:
    runs = {}
    for sites in SITES:
        say(f"scale: {sites} sites")
        runs[sites] = _simulated(sites, 8)
    what = "sites of 8 pictures, all of them in each round"
    return {
        **growth("sites_roll_call", "CPU s", f"{what}: roll call", _each(runs, "roll_call_cpu_s")),
        **growth("sites_round", "CPU s", f"{what}: a round", _each(runs, "round_cpu_s")),
        **growth("sites_bytes", "MB", f"{what}: bytes of a round", _each(runs, "round_mb")),
        **growth(
            "sites_memory", "MB", f"{what}: coordinator's memory after the last round",
            {sites: run["memory_mb"][-1] for sites, run in runs.items()},
        ),
        **growth("sites_disk", "MB", f"{what}: the run's own files", _each(runs, "run_mb")),
    }  # fmt: skip


def _pictures(say: Callable[[str], None]) -> dict[str, Any]:
    runs = {}
    for pictures in PICTURES:
        say(f"scale: {pictures} pictures a site")
        runs[pictures] = _simulated(5, pictures)
    what = "pictures a site, 5 sites"
    return {
        **growth("pictures_round", "CPU s", f"{what}: a round", _each(runs, "round_cpu_s")),
        **growth("pictures_bytes", "MB", f"{what}: bytes of a round", _each(runs, "round_mb")),
        **growth(
            "pictures_memory", "MB", f"{what}: coordinator's memory after the last round",
            {pictures: run["memory_mb"][-1] for pictures, run in runs.items()},
        ),
    }  # fmt: skip


def _classes(say: Callable[[str], None]) -> dict[str, Any]:
    """A release of noisy class sums at a site."""
    say("scale: classes")
    random = np.random.default_rng(0)
    vectors_NP = unit_vectors(random.standard_normal((UNITS, DIRECTIONS)))
    seconds = {}
    for classes in CLASSES:
        labels_N = random.integers(0, classes, UNITS)
        grid = make_grid(sums_bound(1.0), classes * (DIRECTIONS + 1), 4.0)

        def once(classes: int = classes, labels_N: Any = labels_N, grid: Any = grid) -> None:
            sums = counted_sums(vectors_NP, labels_N, np.arange(UNITS), classes, 1.0)
            release(sums, grid)

        seconds[classes] = _seconds(once)
    what = f"classes, {UNITS} units in {DIRECTIONS} directions: class sums with noise, at a site"
    return growth("classes_release", "CPU s", what, seconds)


def _model(say: Callable[[str], None]) -> dict[str, Any]:
    time_, memory = {}, {}
    for megabytes in MEGABYTES:
        say(f"scale: updates of {megabytes} MB")
        with tempfile.TemporaryDirectory() as folder:
            write_updates(Path(folder), megabytes)
            module = "fieldmark.simulations.bench.aggregation"
            runs = [_run(module, "time", "fedavg", REPLIES, folder) for _ in range(3)]
            time_[megabytes] = min(run["ours"] for run in runs)
            memory[megabytes] = _run(module, "memory", "fedavg", REPLIES, folder)["peak"] / 1e6
    what = f"MB of an update, {REPLIES} replies: screened and averaged"
    return {
        **growth("model_time", "s", what, time_),
        **growth("model_memory", "MB", f"{what}, peak above the start", memory),
    }


def _each(runs: Mapping[int, Mapping[str, Any]], name: str) -> dict[int, float]:
    return {size: float(run[name]) for size, run in runs.items()}


def _seconds(once: Callable[[], None], repeats: int = 5) -> float:
    """Least processor seconds of a call: what disturbs it only adds."""
    least = math.inf
    for _ in range(repeats):
        started = time.process_time()
        once()
        least = min(least, time.process_time() - started)
    return least
