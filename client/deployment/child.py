"""One process that answers one request, within what the site lends of its machine.

The process bounds itself: private memory (``RLIMIT_DATA``), the size of a file (``RLIMIT_FSIZE``),
and no core dump, which would hold pictures. Whoever has forked it looks at it besides, ten times a
second: what it really holds, and how long it has worked.

``RLIMIT_AS`` would count addresses, of which CUDA reserves more than a machine has memory; on a GPU
``RLIMIT_DATA`` is left out too, for what a driver maps is not ours to know, and the look from
outside is what bounds it.
"""

import os
import resource
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from client.limits import Limits

LOOK_S = 0.1
"""Between two looks at a process."""

_STATUS = Path("/proc")


@dataclass(frozen=True)
class Ended:
    """How a process has ended.

    Attributes:
        status: As ``os.waitpid`` gives it.
        limit: The limit that it was ended for, in words; empty where it ended by itself.
    """

    status: int
    limit: str = ""


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


def wait_for(pid: int, limits: Limits) -> Ended:
    """Wait for a child, and end it where it takes too much.

    Args:
        pid: Of a child of this process.
        limits: The site's.
    """
    until = time.monotonic() + limits.request_hours * 3600
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not poll.poll(LOOK_S * 1000):
            limit = _reached(pid, limits, until)
            if limit:
                # A child of ours that nobody has waited for: the number is still its own.
                os.kill(pid, signal.SIGKILL)
                return Ended(os.waitpid(pid, 0)[1], limit)
        return Ended(os.waitpid(pid, 0)[1])
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
