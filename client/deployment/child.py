"""Resource limits of the child process that answers one request.

The child limits itself: private memory (``RLIMIT_DATA``), file size (``RLIMIT_FSIZE``), and no core
dump, which would contain pictures. Its parent also checks the memory that it holds and its working
time, ten times a second.

``RLIMIT_AS`` is not used: it counts address space, of which CUDA reserves more than the machine has
memory. On a GPU ``RLIMIT_DATA`` is not used either, because the driver's mappings count too; there
only the parent's check limits memory.

The limits apply to the work. Once the child hands its answer over, it is killed only after
``HANDING_OVER_S``: a SuperNode that knows of an answer waits for all its pieces indefinitely, and
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
"""Interval between two checks of a child, in seconds."""
HANDING_OVER_S = 600.0
"""Maximum time for handing an answer to the SuperNode on this machine, in seconds."""
AWAITS = "waits for a person's approval"
"""Part of the runner's line about a run that a person at the site has to approve."""

HALF_HANDED_OVER = "an answer was handed over in part: the node has to restart"
"""Line by which the runner tells its supervisor about an incomplete handover."""
SPARE_S, SPARE_BYTES = 60.0, 500_000_000
"""Minimum time (s) and extra memory (bytes) of a child that only reports a reached limit."""

_STATUS = Path("/proc")


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: As returned by ``os.waitpid``.
        limit: The limit for which it was killed, in words; empty if it ended by itself.
        handing_over: Whether it had begun to hand its answer over.
    """

    status: int
    limit: str = ""
    handing_over: bool = False


class Handover:
    """Pipe by which a forked child signals that it begins to hand its answer over.

    Create it before the fork.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def begin(self) -> None:
        """Signal the beginning; called in the child."""
        os.write(self._writer, b"x")

    @property
    def begun(self) -> bool:
        """Whether the child has signaled."""
        return bool(select.select([self._reader], [], [], 0)[0])

    def close(self) -> None:
        """Close the pipe; called in the parent."""
        os.close(self._reader)
        os.close(self._writer)


def bound_self(limits: Limits, *, on_gpu: bool) -> None:
    """Limit the calling process permanently; called in the child.

    Beyond the memory limit an allocation fails (MemoryError), beyond the file size a write (OSError
    with EFBIG).

    Args:
        limits: Limits of the site.
        on_gpu: Whether the process may use a GPU.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, int(limits.file_gb * 1e9))
    if not on_gpu:
        used = _figures(os.getpid())
        # Torch and its allocator have mapped more memory than they use.
        unused = max(used.get("VmData", 0) - used.get("RssAnon", 0), 0)
        _lower(resource.RLIMIT_DATA, limits.memory_bytes + unused)


def at_least_to_answer(limits: Limits) -> Limits:
    """Relaxed limits for the child that only reports a reached limit.

    Under the original limits it could hit the same one, and the site would send no answer.

    Args:
        limits: Limits of the site.
    """
    memory = max(limits.memory_bytes, held_bytes(os.getpid()) + SPARE_BYTES)
    hours = max(limits.request_hours, SPARE_S / 3600)
    return limits.model_copy(update={"memory_gb": memory / 1e9, "request_hours": hours})


def wait_for(pid: int, limits: Limits, handover: Handover | None = None) -> Ended:
    """Wait for a child, and kill it if it exceeds a limit.

    Args:
        pid: A child of this process.
        limits: Limits of the site; they apply until the child hands its answer over.
        handover: Signals the beginning of the handover.
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
                # The child has not been reaped, so its pid cannot have been reused.
                os.kill(pid, signal.SIGKILL)
                break
        status = os.waitpid(pid, 0)[1]
        # The handover may have begun after the last check.
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
    """Private memory of a process in bytes: anonymous, shared and swapped, without mapped files."""
    figures = _figures(pid)
    return sum(figures.get(name, 0) for name in ("RssAnon", "RssShmem", "VmSwap"))


def _figures(pid: int) -> dict[str, int]:
    """Byte counts of ``/proc/PID/status`` by name; empty if the process has ended."""
    try:
        text = (_STATUS / str(pid) / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    lines = [line.split() for line in text.splitlines()]
    return {f[0].rstrip(":"): int(f[1]) * 1024 for f in lines if len(f) == 3 and f[2] == "kB"}


def _lower(which: int, most: int) -> None:
    """Lower a resource limit permanently; never raises it."""
    _, hard = resource.getrlimit(which)
    lowest = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (lowest, lowest))
