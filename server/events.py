"""The run's events: one JSON object a line, appended and flushed as they happen."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Listener = Callable[[dict[str, Any]], None]
"""Called with each event after it is written; what it raises ends the run."""


class EventLog:
    """Writes ``events.jsonl`` and tells whoever listens."""

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
