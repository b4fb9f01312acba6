"""Number of cores that this process may use: its CPU affinity, and its cgroup's CPU quota.

A container may be allowed the time of two cores on a machine of 64 without being bound to any; a
worker for each of the 64 would then wait for the others. The quota is in ``cpu.max`` (cgroup v2:
"$MAX $PERIOD", https://docs.kernel.org/admin-guide/cgroup-v2.html) or ``cpu.cfs_quota_us`` and
``cpu.cfs_period_us`` (v1), of the group itself or any above it.
"""

import math
import os
from functools import lru_cache
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_cores() -> list[int]:
    """Numbers of the cores to use, at least one; as many as affinity and quota allow."""
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(os.cpu_count() or 1))
    quota = _quota()
    return cores if quota is None else cores[: max(math.ceil(quota), 1)]


@lru_cache(maxsize=1)
def _quota() -> float | None:
    return cpu_quota(_MOUNT, _OWN)


def cpu_quota(mount: Path, own: Path) -> float | None:
    """Cores' worth of CPU time that the cgroup may use; None without a limit.

    Args:
        mount: Where cgroups are mounted.
        own: File that names this process's groups (``/proc/self/cgroup``).
    """
    found = []
    for folder in _groups(mount, own):
        for quota, period in _limits(folder):
            if quota > 0 and period > 0:
                found.append(quota / period)
    return min(found, default=None)


def _groups(mount: Path, own: Path) -> list[Path]:
    """Folders of this process's groups for CPU time, and of all above them."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    folders = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mount / controllers if controllers else mount
        # Within a container the path may be that of the host, which is not mounted here.
        below = Path(path.lstrip("/"))
        folders += [top / part for part in (below, *below.parents)]
    return [*folders, mount, mount / "cpu"]


def _limits(folder: Path) -> list[tuple[float, float]]:
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()[:2]
        return [] if quota == "max" else [(float(quota), float(period))]
    except (OSError, ValueError):
        pass
    try:
        quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8")
        return [(float(quota), float((folder / "cpu.cfs_period_us").read_text(encoding="utf-8")))]
    except (OSError, ValueError):
        return []
