"""Pools of worker processes: one per core, pinned, with one torch thread each.

Without pinning, two workers have been observed to share one core while the other was idle, and two
threads in each made both slower; one pinned core and one thread is fastest for many small models.
Workers are forked from a server that imports torch once, while the parent is still busy with its
own imports.
"""

import ast
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from types import FrameType

from fgvc_core.cores import usable_cores
from fgvc_core.errors import ConfigurationError, RunFailed

# Imported once by the fork server, so every worker starts with it.
PRELOAD = ["fieldmark.simulations.preloaded"]


def refuse_unguarded() -> None:
    """End a script that its own worker processes would execute again.

    A worker imports the parent's script, as every new process of Python's ``multiprocessing`` does.
    Work at the script's top level, outside of ``if __name__ == "__main__":``, would start again in
    each.

    Raises:
        SystemExit: with code 2, after one sentence on standard error, when called from there.
    """
    main = sys.modules["__main__"]
    frame: FrameType | None = sys._getframe()
    while frame is not None and (
        frame.f_globals is not main.__dict__ or frame.f_code.co_name != "<module>"
    ):
        frame = frame.f_back
    file = getattr(main, "__file__", None)
    if frame is None or file is None:
        # In a notebook or interactive session there is no script for workers to import.
        return
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return
    for statement in tree.body:
        if statement.lineno > frame.f_lineno:
            break
        if isinstance(statement, ast.If) and "__name__" in ast.dump(statement.test):
            return
    print(
        f"{file}, line {frame.f_lineno}: put what a script does under "
        "'if __name__ == \"__main__\":', because each worker process imports the script.",
        file=sys.stderr,
    )
    raise SystemExit(ConfigurationError.exit_code)


def available_cores() -> list[int]:
    """The cores that this process may run on, by its CPU affinity and its cgroup's quota."""
    return usable_cores()


def context() -> BaseContext:
    """The multiprocessing context, with its fork server already started."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(PRELOAD)
    _start_tracker()
    forkserver.ensure_running()
    return chosen


def _start_tracker() -> None:
    """Start the process that removes this one's semaphores if it is ended at once.

    It would warn of them as leaked after the last words, though it has just removed them.
    """
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.pop()


def make_pool(count: int | None = None) -> ProcessPoolExecutor:
    """A pool of pinned workers.

    Args:
        count: How many; by default one per core that this process may use.
    """
    cores = available_cores()
    count = count or len(cores)
    chosen = context()
    try:
        queue = chosen.Queue()
    except OSError as error:
        raise ConfigurationError(
            f"Worker processes cannot be started: {error.strerror or error}.",
            why="They share semaphores and memory in /dev/shm.",
            remedy="Make /dev/shm writable (docker run --shm-size=1g, or mount a tmpfs there).",
        ) from None
    for number in range(count):
        queue.put(cores[number % len(cores)])
    return ProcessPoolExecutor(count, mp_context=chosen, initializer=_settle, initargs=(queue,))


@contextmanager
def hired(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of workers for one piece of work; on failure, pending tasks are dropped.

    Raises:
        RunFailed: if a worker died.
    """
    with make_pool(count) as pool:
        try:
            yield pool
        except BaseException as error:
            # Waited for: a pool that still ends while Python does may complain of closed pipes.
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise RunFailed(
                    "A worker process died.",
                    why="What it worked on is lost; a checkpoint that was written is whole.",
                    remedy="Often memory ran out: use fewer or smaller pictures.",
                ) from None
            raise


def _settle(queue: "multiprocessing.Queue[int]") -> None:
    # Ctrl-C reaches the whole process group; only the parent reacts to it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    core = queue.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    import torch

    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """End this worker when the process that made the pool has died, however it died.

    A worker waits for its next task in a queue whose other end it holds itself, so it would never
    learn of that; and the fork server lives as long as any worker does.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
