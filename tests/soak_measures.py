"""What a soak measures of a coordinator, and when it calls a figure growing.

A figure that is flat may still wander: caches fill, a run's process comes and goes. So the
second quarter is compared with the last by their medians, and what counts is a stated margin
above noise; the first quarter is warm-up.
"""

import json
import sqlite3
import statistics
from dataclasses import dataclass
from pathlib import Path

MEMORY_MARGIN_MB = 30.0
MEMORY_MARGIN_SHARE = 0.15
DISK_MARGIN_MB = 2.0
DISK_MARGIN_SHARE = 0.10
SERVICES = ("superlink", "gateway", "executor", "pages")


@dataclass(frozen=True)
class Figure:
    """One figure over a soak, in MB or rows.

    Attributes:
        name: What it is of.
        values: In order of time.
        margin: By how much the last quarter's median may lie above the second's.
    """

    name: str
    values: tuple[float, ...]
    margin: float

    @property
    def second(self) -> float:
        """Median of the second quarter."""
        quarter = max(len(self.values) // 4, 1)
        return statistics.median(self.values[quarter : 2 * quarter] or self.values)

    @property
    def last(self) -> float:
        """Median of the last quarter."""
        return statistics.median(self.values[-max(len(self.values) // 4, 1) :])

    @property
    def grows(self) -> bool:
        """Whether it has grown by more than its margin between the second quarter and the last."""
        return self.last - self.second > self.margin

    def row(self) -> str:
        """A line of the table: first, median of the second and last quarter, maximum."""
        shown = (self.values[0], self.second, self.last, max(self.values))
        verdict = "GROWS" if self.grows else "flat"
        return f"{self.name:28}" + "".join(f"{value:12.1f}" for value in shown) + f"  {verdict}"


HEAD = f"{'':28}" + "".join(f"{name:>12}" for name in ("first", "2nd quarter", "last", "max"))


def memory(name: str, values: list[float]) -> Figure:
    """A process's memory, in MB."""
    level = statistics.median(values)
    return Figure(name, tuple(values), max(MEMORY_MARGIN_MB, MEMORY_MARGIN_SHARE * level))


def disk(name: str, values: list[float]) -> Figure:
    """A folder's or a file's size, in MB."""
    level = statistics.median(values)
    return Figure(name, tuple(values), max(DISK_MARGIN_MB, DISK_MARGIN_SHARE * level))


def rss_mb(pid: int) -> float:
    """Resident memory of a process, in MB; 0 where it is gone."""
    return _status(pid, "VmRSS")


def anonymous_mb(pid: int) -> float:
    """What of it is the process's own: not files that it has mapped."""
    return _status(pid, "RssAnon")


def _status(pid: int, what: str) -> float:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = [line for line in text.splitlines() if line.startswith(f"{what}:")]
    return int(found[0].split()[1]) * 1024 / 1e6 if found else 0.0


def children(pid: int) -> list[int]:
    """Processes that a process has started and that are still there."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(number) for number in text.split()]


def folder_mb(folder: Path) -> float:
    """Bytes of all files below a folder, in MB; a file that vanishes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            found = path.lstat()
        except OSError:
            continue
        total += found.st_size
    return total / 1e6


def rows_of(database: Path) -> dict[str, int]:
    """Table -> rows of an SQLite database that another process writes to."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5) as link:
        names = [n for (n,) in link.execute("select name from sqlite_master where type = 'table'")]
        found = {n: link.execute(f'select count(*) from "{n}"').fetchone()[0] for n in names}
    link.close()
    return found


def coordinator_mb(folder: Path, pid: int) -> dict[str, float]:
    """Process of a coordinator -> its memory, in MB.

    Args:
        folder: The coordinator's.
        pid: Of its ``server up``.
    """
    services = json.loads((folder / "state" / "services.json").read_text())
    found = {"server up": rss_mb(pid)}
    for name in SERVICES:
        of = services.get(name, {}).get("pid")
        if of:
            found[name] = rss_mb(of)
    executor = services.get("executor", {}).get("pid") or 0
    runs = [rss_mb(child) for child in children(executor)]
    if runs:
        found["a run"] = max(runs)
    link = services.get("superlink", {}).get("pid") or 0
    found["superlink, own"] = anonymous_mb(link)
    return found
