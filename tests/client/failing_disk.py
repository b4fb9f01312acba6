"""A stand-in for ``os`` in fgvc_core.files: kills, cuts the power or is full at a chosen point."""

import errno
import os
import signal
from dataclasses import dataclass
from pathlib import Path

CHANGING = ("open", "write", "fsync", "replace")


@dataclass(frozen=True)
class Point:
    """Before the ``at``-th call that changes the disk; of a write after ``cut`` bytes."""

    at: int
    cut: int = 0


class Disk:
    """What fgvc_core.files sees as ``os``.

    A sync is counted and not carried out: what a killed process has written stays in the
    kernel. What the syncs are worth is shown by cutting the power instead.

    Args:
        point: Where it happens; None: never.
        how: ``kill`` (SIGKILL to this process), ``power`` (what was not synced is lost, then
            SIGKILL) or ``full`` (from there on no byte can be written).
    """

    def __init__(self, point: Point | None = None, how: str = "kill") -> None:
        self.calls: list[tuple[str, int]] = []
        self.full = False
        self._point = point
        self._how = how
        self._paths: dict[int, Path] = {}
        # What a power cut takes back: contents, renames (with what was there), new names.
        self._contents: dict[Path, bytes] = {}
        self._renames: list[tuple[Path, bytes | None]] = []
        self._names: set[Path] = set()

    def __getattr__(self, name: str):
        return getattr(os, name)

    def open(self, path, flags: int, mode: int = 0o777) -> int:
        path = Path(path)
        self._pass("open", 0)
        if flags & os.O_CREAT:
            if not path.exists():
                self._names.add(path)
                self._contents[path] = b""
            elif flags & os.O_TRUNC:
                self._contents.setdefault(path, path.read_bytes())
        descriptor = os.open(path, flags, mode)
        self._paths[descriptor] = path
        return descriptor

    def write(self, descriptor: int, data) -> int:
        path = self._paths[descriptor]
        self._contents.setdefault(path, path.read_bytes())
        cut = self._pass("write", len(data), descriptor, data)
        return os.write(descriptor, data) if cut is None else cut

    def fsync(self, descriptor: int) -> None:
        path = self._paths[descriptor]
        self._pass("fsync", 0)
        if path.is_dir():
            self._renames = [one for one in self._renames if one[0].parent != path]
            self._names = {name for name in self._names if name.parent != path}
        else:
            self._contents.pop(path, None)

    def replace(self, source, target) -> None:
        source, target = Path(source), Path(target)
        self._pass("replace", 0)
        self._renames.append((target, target.read_bytes() if target.exists() else None))
        self._names.discard(source)
        if source in self._contents:
            self._contents[target] = self._contents.pop(source)
        os.replace(source, target)

    def _pass(self, kind: str, size: int, descriptor: int = -1, data=b"") -> int | None:
        number = len(self.calls)
        self.calls.append((kind, size))
        here = self._point is not None and number == self._point.at
        if self._how == "full":
            if not (here or self.full) or kind != "write":
                return None
            self.full = True
            written = os.write(descriptor, data[: self._point.cut]) if here else 0
            if written:
                # The kernel takes what there is room for; the next call finds none.
                return written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if here:
            if kind == "write":
                os.write(descriptor, data[: self._point.cut])
            if self._how == "power":
                self._lose()
            os.kill(os.getpid(), signal.SIGKILL)
        return None

    def _lose(self) -> None:
        for target, before in reversed(self._renames):
            if before is None:
                target.unlink()
            else:
                target.write_bytes(before)
        for path, before in self._contents.items():
            if path.exists():
                path.write_bytes(before)
        for path in self._names:
            path.unlink(missing_ok=True)


def points_of(calls: list[tuple[str, int]]) -> list[Point]:
    """Before every call, and inside every write: after its first byte, half, all but one, all."""
    points = []
    for at, (kind, size) in enumerate(calls):
        cuts = {0, 1, size // 2, size - 1, size} if kind == "write" else {0}
        points += [Point(at, cut) for cut in sorted(cuts) if 0 <= cut <= size]
    return points
