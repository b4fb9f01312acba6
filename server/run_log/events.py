"""The event log of a run: one JSON object per line, appended and flushed as events happen.

A checkpoint records the file's length, and a resumed run continues from there. Later lines belong
to an interrupted round that is repeated; they move to ``events-cut.jsonl``, so ``events.jsonl`` has
every event once. What the round's end was about stays: which site has lost a masked sum.
"""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Listener = Callable[[dict[str, Any]], None]
"""Called with each event after it is written; an exception ends the run."""


LASTING = frozenset({"secure_sum_lost"})
"""Events that stay although the round they belong to is repeated: they are not part of its work."""


class EventLog:
    """Writes ``events.jsonl`` and calls the listeners."""

    def __init__(self, path: Path, listeners: tuple[Listener, ...] = ()) -> None:
        self._path = path
        self._listeners = listeners

    def emit(self, event: str, **fields: Any) -> None:
        """Record one event with the current time."""
        record = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
        record.update(fields)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for listener in self._listeners:
            listener(record)

    def mark(self) -> int:
        """Sync the file to disk and return its length in bytes."""
        if not self._path.exists():
            return 0
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def cut(self, length: int) -> int:
        """Move everything after a mark to ``events-cut.jsonl``, but for the lasting events.

        Returns:
            How many lines were moved; a truncated last line counts.
        """
        if not self._path.exists() or self._path.stat().st_size <= length:
            return 0
        with self._path.open("r+b") as file:
            file.seek(length)
            lines = file.read().splitlines(keepends=True)
            kept = [line for line in lines if _lasts(line)]
            moved = [line for line in lines if line not in kept]
            with self._path.with_name(f"{self._path.stem}-cut.jsonl").open("ab") as aside:
                aside.write(b"".join(moved).rstrip(b"\n") + b"\n" if moved else b"")
                aside.flush()
                os.fsync(aside.fileno())
            # Written over the tail before it is cut: a crash in between loses no lasting event.
            file.seek(length)
            file.write(b"".join(kept))
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        return len(moved)


def _lasts(line: bytes) -> bool:
    """Whether a line is a whole event that stays."""
    try:
        return line.endswith(b"\n") and json.loads(line).get("event") in LASTING
    except (ValueError, AttributeError):
        return False
