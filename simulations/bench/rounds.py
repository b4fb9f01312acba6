"""Benchmark ``rounds``: time and memory of one round's aggregation at the coordinator.

Updates of 45 MB from 10 and from 100 sites, each measured in a separate process; see
:mod:`fieldmark.simulations.bench.aggregation`.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fieldmark.simulations.bench import figure
from fieldmark.simulations.bench.aggregation import SPILL_MB, write_updates

UPDATE_MB = 45
FEW, MANY = 10, 100
REPEATS = 3


def bench_rounds() -> dict[str, Any]:
    """The figures of ``fieldmark bench rounds``."""
    with tempfile.TemporaryDirectory() as folder:
        updates = Path(folder)
        write_updates(updates, UPDATE_MB)
        return {**_memory(updates), **_time(updates)}


def _memory(updates: Path) -> dict[str, Any]:
    few, many = (_run("memory", "fedavg", sites, updates)["peak"] / 1e6 for sites in (FEW, MANY))
    median = _run("memory", "fedmedian", MANY, updates)["peak"]
    where = "peak resident memory of the coordinator above its start, fedavg"
    return {
        "memory_vs_update": figure(
            many, UPDATE_MB, "MB", f"{where}, {MANY} sites, against one update of {UPDATE_MB} MB"
        ),
        f"memory_{MANY}_vs_{FEW}_sites": figure(
            many, few, "MB", f"{where}, updates of {UPDATE_MB} MB: {MANY} sites against {FEW}"
        ),
        "median_memory_gb": figure(
            median / 1e9,
            None,
            "GB",
            f"peak resident memory above the start, fedmedian, {MANY} sites of {UPDATE_MB} MB, "
            f"federation.spill_mb = {SPILL_MB:g}",
        ),
    }


def _time(updates: Path) -> dict[str, Any]:
    runs = [_run("time", "fedavg", MANY, updates) for _ in range(REPEATS)]
    middle = sorted(runs, key=lambda run: run["ours"] / run["numpy"])[REPEATS // 2]
    hashed = statistics.median(run["ours"] / run["hashed"] for run in runs)
    how = (
        f"{MANY} replies of {UPDATE_MB} MB from cached files to the new model; median of "
        f"{REPEATS} runs, taking turns at each reply with the reference: "
    )
    return {
        "time_vs_numpy": figure(
            middle["ours"],
            middle["numpy"],
            "s",
            f"{how}reading and adding the same bytes once with NumPy. Ours also hashes them "
            "(BLAKE3), checks signature, headers, lengths, finiteness and norm",
        ),
        "time_vs_numpy_hashed": figure(
            middle["ours"],
            middle["ours"] / hashed,
            "s",
            f"{how}reading, hashing (BLAKE3, one thread) and adding them: what checking the "
            "signature of an update costs at least",
        ),
    }


def _run(mode: str, strategy: str, sites: int, updates: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "fieldmark.simulations.bench.aggregation", mode, strategy]
    done = subprocess.run(
        [*command, str(sites), str(updates)], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found
