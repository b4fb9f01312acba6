"""Four clients that train on one GPU: in turn, on streams of one process, in processes."""

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from fieldmark.simulations.bench import figure
from fieldmark.simulations.bench.dp_step import BATCH, stepper
from fieldmark.simulations.bench.gpu_timing import REPEATS, Run, median_seconds, not_measured

CLIENTS = 4
STEPS = 8


def client_figures(device: torch.device) -> dict[str, Any]:
    """Four clients that train on one GPU at once: in turn, on streams, in processes."""
    if device.type != "cuda":
        why = "several clients on one GPU need a GPU"
        return {"clients_streams": not_measured(why), "clients_processes": not_measured(why)}
    runs = [stepper("plain", STEPS, device) for _ in range(CLIENTS)]
    streams = [torch.cuda.Stream(device) for _ in range(CLIENTS)]
    seconds = median_seconds(
        {
            "turns": lambda: [run() for run in runs],
            "streams": lambda: _on_streams(runs, streams),
        },
        device,
    )
    by_process, memory = _in_processes(device)
    what = f"{CLIENTS} clients, {STEPS} steps each of {BATCH} pictures of 64 px, demo network"
    return {
        "clients_streams": figure(
            seconds["streams"], seconds["turns"], "s", f"{what}: a stream each, against in turn"
        ),
        "clients_processes": figure(
            by_process, seconds["turns"], "s", f"{what}: a process each, against in turn in one"
        ),
        "clients_processes_memory": figure(
            memory, None, "MB", f"{what}: GPU memory of the processes together, contexts included"
        ),
    }


def _on_streams(runs: Sequence[Run], streams: list[torch.cuda.Stream]) -> None:
    for run, stream in zip(runs, streams, strict=True):
        with torch.cuda.stream(stream):
            run()


def _in_processes(device: torch.device) -> tuple[float, float]:
    """Median seconds from a common start until the last has ended, and GPU memory in MB."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(CLIENTS + 1)
    free, _ = torch.cuda.mem_get_info(device)
    clients = [
        context.Process(target=_client, args=(barrier, str(device)), daemon=True)
        for _ in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    found = []
    for repeat in range(REPEATS + 1):
        barrier.wait(timeout=300)
        started = time.perf_counter()
        barrier.wait(timeout=300)
        if repeat:
            found.append(time.perf_counter() - started)
    left, _ = torch.cuda.mem_get_info(device)
    barrier.wait(timeout=300)
    for client in clients:
        client.join()
    return statistics.median(found), (free - left) / 1e6


def _client(barrier: Any, device: str) -> None:
    run = stepper("plain", STEPS, torch.device(device))
    for _ in range(REPEATS + 1):
        barrier.wait(timeout=300)
        run()
        torch.cuda.synchronize()
        barrier.wait(timeout=300)
    # The memory is read before the processes end.
    barrier.wait(timeout=300)
