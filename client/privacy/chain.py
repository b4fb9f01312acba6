"""A file of entries, each of which holds the hash of the one before.

One entry is one line of JSON. Changing, dropping or reordering a line breaks the chain
from there on; cutting lines off the end leaves a whole chain, which only somebody who
remembers a later head can see: the file ``ledger.head`` beside it, and the coordinator.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from client.privacy.journal import append_durably, write_durably
from fgvc_core.errors import DataError

GENESIS = "0" * 64
"""What the first entry names as the one before."""

TORN = "torn"
"""Kind of the entry that owns up to a line which a crash cut short."""

_RESTORE = "Restore the ledger from a copy that verifies; do not mend it by hand."


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Attributes:
        number: Counts from 0.
        time: UTC, ISO 8601, to the second.
        kind: What it says.
        values: The rest of it.
        before: Hash of the entry before.
        hash: SHA-256 (hex) over all of the above.
    """

    number: int
    time: str
    kind: str
    values: dict[str, Any]
    before: str
    hash: str

    def line(self) -> bytes:
        """The entry as a line of the file."""
        return (json.dumps({**_hashed(self), "hash": self.hash}) + "\n").encode()


def read_chain(data: bytes) -> tuple[list[Entry], bytes]:
    """Entries of a whole file, verified, and the torn rest after its last entry.

    Raises:
        DataError: naming the line, if the chain does not hold.
    """
    entries: list[Entry] = []
    return entries, _extend(entries, data)


class Chain:
    """One chained file.

    Args:
        path: Where it is; the head is remembered in ``<stem>.head`` beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._head_path = path.with_suffix(".head")
        self._lock = FileLock(path.with_suffix(".lock"))
        self._entries: list[Entry] = []
        self._read = 0

    @contextmanager
    def writing(self) -> Iterator["Chain"]:
        """Hold the one writer's lock; a torn line that a crash has left is closed first.

        Raises:
            DataError: if the chain does not hold, or is shorter than its remembered head.
        """
        with self._lock:
            rest = self._refresh()
            if rest and not rest.endswith(b"\n"):
                append_durably(self.path, b"\n")
                # Where nothing but the line's end was missing, this is a whole entry now.
                rest = self._refresh()
            if rest:
                # The fragment stays where it is; an entry after it owns up to it.
                self._read += len(rest)
                self.append(TORN, {"sha256": hashlib.sha256(rest).hexdigest()})
            yield self

    def entries(self) -> Sequence[Entry]:
        """All entries, verified; a torn rest is left out.

        Raises:
            DataError: if the chain does not hold, or is shorter than its remembered head.
        """
        self._refresh()
        return self._entries

    @property
    def head(self) -> str:
        """Hash of the last entry read or written."""
        return self._entries[-1].hash if self._entries else GENESIS

    def append(self, kind: str, values: dict[str, Any]) -> Entry:
        """Add an entry; on the disk when this returns. Only inside :meth:`writing`.

        Raises:
            OSError: if it could not be written (a full disk): then nothing may follow.
        """
        entry = _make(self._entries, kind, values)
        line = entry.line()
        append_durably(self.path, line)
        self._read += len(line)
        self._entries.append(entry)
        write_durably(self._head_path, f"{entry.number} {entry.hash}\n".encode())
        return entry

    def _refresh(self) -> bytes:
        """Read what was added since the last time; returns the torn rest."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
                if file.tell() < self._read:
                    raise DataError(
                        f"The ledger '{self.path}' has become shorter.",
                        why="What it said had been spent would be forgotten.",
                        remedy=_RESTORE,
                    )
        except FileNotFoundError:
            data = b""
        rest = _extend(self._entries, data)
        self._read += len(data) - len(rest)
        self._check_head()
        return rest

    def _check_head(self) -> None:
        try:
            number, digest = self._head_path.read_text(encoding="ascii").split()
        except FileNotFoundError:
            return
        except ValueError:
            number, digest = "-1", ""
        at = int(number)
        if not 0 <= at < len(self._entries) or self._entries[at].hash != digest:
            raise DataError(
                f"The ledger '{self.path}' is not the one that '{self._head_path.name}' remembers "
                f"({len(self._entries)} entries, entry {at} expected).",
                why="Entries were cut off or exchanged: what they said had been spent would be "
                "forgotten.",
                remedy=_RESTORE,
            )


def _extend(entries: list[Entry], data: bytes) -> bytes:
    """Add a file's further lines to the entries; returns what follows the last entry."""
    fragments = b""
    *lines, rest = data.split(b"\n")
    for line in lines:
        entry = _parse(line)
        if entry is None:
            fragments += line + b"\n"
            continue
        if (entry.kind == TORN) != bool(fragments) or (
            fragments and entry.values.get("sha256") != hashlib.sha256(fragments).hexdigest()
        ):
            raise _broken(len(entries))
        fragments = b""
        before = entries[-1].hash if entries else GENESIS
        if entry.number != len(entries) or entry.before != before or entry.hash != _hash(entry):
            raise _broken(len(entries))
        entries.append(entry)
    return fragments + rest


def _parse(line: bytes) -> Entry | None:
    try:
        values = json.loads(line)
        return Entry(
            values.pop("n"),
            values.pop("time"),
            values.pop("kind"),
            {k: v for k, v in values.items() if k not in ("prev", "hash")},
            values["prev"],
            values["hash"],
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _make(entries: Sequence[Entry], kind: str, values: dict[str, Any]) -> Entry:
    before = entries[-1].hash if entries else GENESIS
    time = datetime.now(UTC).isoformat(timespec="seconds")
    draft = Entry(len(entries), time, kind, values, before, "")
    return Entry(draft.number, time, kind, values, before, _hash(draft))


def _hashed(entry: Entry) -> dict[str, Any]:
    own = {"n": entry.number, "time": entry.time, "kind": entry.kind}
    return {**own, **entry.values, "prev": entry.before}


def _hash(entry: Entry) -> str:
    canonical = json.dumps(_hashed(entry), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _broken(number: int) -> DataError:
    return DataError(
        f"The ledger's chain breaks at entry {number}.",
        why="A line was changed, dropped or put in: what was spent can no longer be told.",
        remedy=_RESTORE,
    )
