"""Seconds and memory of work on a device, whose kernels run on after the call returns."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

REPEATS = 5

Run = Callable[[], object]


def not_measured(why: str) -> dict[str, Any]:
    """A figure that this machine cannot give."""
    nothing: dict[str, Any] = dict.fromkeys(("value", "reference", "ratio"))
    return {**nothing, "unit": "", "how": f"not measured: {why}"}


def wait_for(device: torch.device) -> None:
    """Return once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(runs: Mapping[str, Run], device: torch.device) -> dict[str, float]:
    """Median seconds of each run, taken in turn; the first of each is warm-up.

    On a CPU these are processor seconds of this process, which other load hardly changes.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(REPEATS + 1):
        for name, run in runs.items():
            wait_for(device)
            started = clock()
            run()
            wait_for(device)
            if repeat:
                times[name].append(clock() - started)
    return {name: statistics.median(found) for name, found in times.items()}


def peak_megabytes(run: Run, device: torch.device) -> float:
    """Most GPU memory that a run takes beyond what was taken before it, in MB."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6
