"""One process that answers one request, within what the site lends of its machine.

The process bounds itself: private memory (``RLIMIT_DATA``), the size of a file (``RLIMIT_FSIZE``),
and no core dump, which would hold pictures. Whoever has forked it looks at it besides, ten times a
second: what it really holds, and how long it has worked.

``RLIMIT_AS`` would count addresses, of which CUDA reserves more than a machine has memory; on a GPU
``RLIMIT_DATA`` is left out too, for what a driver maps is not ours to know, and the look from
outside is what bounds it.

The limits are those of the work. Once the process hands its answer over it is ended only where that
takes very long: a SuperNode that has heard of an answer waits for all its pieces without end, and
sends nothing else.
"""

import os
import resource
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from fieldmark.client.limits import Limits

LOOK_S = 0.1
"""Between two looks at a process."""
HANDING_OVER_S = 600.0
"""Longest that an answer may take to the SuperNode on this machine, in seconds."""
HALF_HANDED_OVER = "an answer was handed over in part: the node has to start anew"
"""The line by which the runner tells its supervisor so."""
SPARE_S, SPARE_BYTES = 60.0, 500_000_000
"""What the process that answers for one that reached a limit has at least: a minute, and this
beyond what it starts with."""

_STATUS = Path("/proc")


@dataclass(frozen=True)
class Ended:
    """How a process has ended.

    Attributes:
        status: As ``os.waitpid`` gives it.
        limit: The limit that it was ended for, in words; empty where it ended by itself.
        handing_over: Whether it had begun to hand its answer over.
    """

    status: int
    limit: str = ""
    handing_over: bool = False


class Handover:
    """Tells whoever has forked a process that it begins to hand its answer over; made before."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def begin(self) -> None:
        """Say so; called in the fork."""
        os.write(self._writer, b"x")

    @property
    def begun(self) -> bool:
        """Whether the fork has said so."""
        return bool(select.select([self._reader], [], [], 0)[0])

    def close(self) -> None:
        """Give the pipe back; called in the process that has forked."""
        os.close(self._reader)
        os.close(self._writer)


def bound_self(limits: Limits, *, on_gpu: bool) -> None:
    """Bound the calling process for good; called in the fork.

    Beyond memory an allocation fails (MemoryError), beyond a file's size a write (OSError, EFBIG).

    Args:
        limits: The site's.
        on_gpu: Whether it may use a GPU.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, int(limits.file_gb * 1e9))
    if not on_gpu:
        used = _figures(os.getpid())
        # Torch and its allocator have mapped more than they have used.
        unused = max(used.get("VmData", 0) - used.get("RssAnon", 0), 0)
        _lower(resource.RLIMIT_DATA, limits.memory_bytes + unused)


def at_least_to_answer(limits: Limits) -> Limits:
    """The limits for a process that says no more than that a limit was reached.

    Under the same ones it could reach it as well, and the site would say nothing.

    Args:
        limits: The site's.
    """
    memory = max(limits.memory_bytes, held_bytes(os.getpid()) + SPARE_BYTES)
    hours = max(limits.request_hours, SPARE_S / 3600)
    return limits.model_copy(update={"memory_gb": memory / 1e9, "request_hours": hours})


def wait_for(pid: int, limits: Limits, handover: Handover | None = None) -> Ended:
    """Wait for a child, and end it where it takes too much.

    Args:
        pid: Of a child of this process.
        limits: The site's; they hold until it hands its answer over.
        handover: By which it says that it does.
    """
    until = time.monotonic() + limits.request_hours * 3600
    handed_by = 0.0
    limit = ""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not poll.poll(LOOK_S * 1000):
            if handover is not None and handover.begun:
                handed_by = handed_by or time.monotonic() + HANDING_OVER_S
                if time.monotonic() > handed_by:
                    limit = f"its answer was not handed over within {HANDING_OVER_S:g} s"
            else:
                limit = _reached(pid, limits, until)
            if limit:
                # A child of ours that nobody has waited for: the number is still its own.
                os.kill(pid, signal.SIGKILL)
                break
        status = os.waitpid(pid, 0)[1]
        # Looked at again: it may have begun between the last look and its end.
        return Ended(status, limit, handover is not None and handover.begun)
    finally:
        os.close(descriptor)


def _reached(pid: int, limits: Limits, until: float) -> str:
    if time.monotonic() > until:
        return f"limits.request_hours = {limits.request_hours:g}: the work took longer"
    held = held_bytes(pid)
    if held > limits.memory_bytes:
        most = limits.memory_bytes / 1e9
        return f"limits.memory_gb = {most:.3g}: the work held {held / 1e9:.3g} GB"
    return ""


def held_bytes(pid: int) -> int:
    """Memory that only this process has a use for; files that it has mapped are not counted."""
    figures = _figures(pid)
    return sum(figures.get(name, 0) for name in ("RssAnon", "RssShmem", "VmSwap"))


def _figures(pid: int) -> dict[str, int]:
    """Bytes by name, as Linux tells them; none where the process has ended."""
    try:
        text = (_STATUS / str(pid) / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    lines = [line.split() for line in text.splitlines()]
    return {f[0].rstrip(":"): int(f[1]) * 1024 for f in lines if len(f) == 3 and f[2] == "kB"}


def _lower(which: int, most: int) -> None:
    """Set a limit for good; one that is lower already stays."""
    _, hard = resource.getrlimit(which)
    lowest = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (lowest, lowest))
