"""Benchmark ``dp``: cost of privacy for a training step, and for a round on cached features."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fgvc_core.data.cache import cache_folder
from fgvc_core.experiment import completed
from fgvc_core.recipe import Recipe, parse_recipe
from fieldmark.simulations.bench import figure
from fieldmark.simulations.bench.dp_step import BATCH, KINDS, stepper
from fieldmark.simulations.bench.engine import run_quietly, tree_cpu
from fieldmark.simulations.folders import lay_out
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, prepare
from fieldmark.simulations.workers import make_pool

STEPS = 4
REPEATS = 7
ROUNDS = 18
PAIRS = 3
PRIVATE = ["privacy.epsilon=8.0", "privacy.method=gradients", "privacy.sampling_rate=0.25",
           "privacy.steps=4"]  # fmt: skip


def bench_dp() -> dict[str, Any]:
    """The figures of ``fieldmark bench dp``."""
    seconds = _step_seconds()
    memory = {kind: _extra_memory(kind) for kind in seconds}
    figures = {}
    for kind in ("batched", "loop", "opacus"):
        what = f"a step on {BATCH} units of one 64 px picture, demo network, one thread"
        figures[f"{kind}_time"] = figure(
            seconds[kind], seconds["plain"], "s", f"{what}; CPU time, median of {REPEATS} x {STEPS}"
        )
        figures[f"{kind}_memory"] = figure(
            memory[kind] / 1e6, memory["plain"] / 1e6, "MB", f"{what}; peak above the start"
        )
    plain, private = _round_seconds()
    figures["cached_round_time"] = figure(
        private,
        plain,
        "CPU s a round",
        "5 sites with 120 pictures each, cosine head on 1,280 cached features, 4 steps; ledger, "
        f"outbox and noise included; processor time with one worker, median of {PAIRS} runs of "
        f"{ROUNDS - 2} rounds, plain and private runs in turn",
    )
    return figures


def _step_seconds() -> dict[str, float]:
    """Median CPU seconds per step on one thread, which depend little on other load.

    The kinds alternate, so disturbances affect all of them.
    """
    runs = {kind: stepper(kind, STEPS) for kind in KINDS}
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for repeat in range(REPEATS + 1):
        for kind, run in runs.items():
            started = time.process_time()
            run()
            if repeat:
                times[kind].append((time.process_time() - started) / STEPS)
    return {kind: statistics.median(found) for kind, found in times.items()}


def _extra_memory(kind: str) -> int:
    command = [sys.executable, "-m", "fieldmark.simulations.bench.dp_step", kind, "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def _round_seconds() -> tuple[float, float]:
    """Median processor seconds of a plain and of a private round, from alternating runs."""
    kinds: tuple[list[str], list[str]] = ([], PRIVATE)
    seconds: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder, make_pool(1) as pool:
        for pair in range(PAIRS):
            for kind, (overrides, found) in enumerate(zip(kinds, seconds, strict=True)):
                recipe = _cached_recipe(overrides)
                setting = deal(recipe, cache_folder())
                recipe = completed(recipe, setting.table).with_sites(len(setting.rows))
                prepare(recipe, setting, pool, lambda done, total: None)
                plan = Simulation(recipe, Path(folder) / f"{pair}-{kind}")
                lay_out(plan, setting)
                ends: list[float] = []
                run_quietly(plan, setting, pool, 1, _at_round_ends(ends))
                # The first rounds load the model and the features.
                found.append((ends[-1] - ends[1]) / (len(ends) - 2))
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _at_round_ends(ends: list[float]) -> Callable[[dict[str, Any]], None]:
    """A listener that notes the processor seconds so far whenever a round ends."""

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "round_finished":
            ends.append(tree_cpu())

    return listen


def _cached_recipe(overrides: list[str]) -> Recipe:
    return parse_recipe(_CACHED, overrides, where="the benchmark's recipe")


_CACHED = f"""
name = "bench-dp"
seed = 1
[data]
fieldmarks_train = 600
fieldmarks_test = 60
val_fraction = 0.0
[model]
backbone = "tf_efficientnet_lite0"
attention = "none"
head = "cosine"
train = "head"
[train]
optimizer = "sgd"
lr = 0.1
batch_size = 30
[federation]
rounds = {ROUNDS}
[evaluate]
pixel_baseline = false
every = 0
"""
