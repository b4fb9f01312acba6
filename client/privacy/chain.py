"""Append-only file of entries, each with the hash of its predecessor.

One entry is one line of JSON. Changing, dropping or reordering a line breaks the chain from there
on. Truncating the file, or restoring an old copy, leaves a valid chain; it is detected only by
comparing with a newer head. Three places keep one: ``ledger.head`` beside the file, the register in
the user's state folder (as of the last charge or reply), and the coordinator, which names the last
head that it has seen, of any run, in each request.

Not detected: restoring ledger, ``ledger.head`` and register together, if no coordinator has seen a
newer head. The hashes are not keyed: whoever can write here can rewrite the file from some line on,
including ``ledger.head``, and only the register and the coordinator keep another head.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Any

from filelock import FileLock

from fgvc_core.errors import DataError
from fgvc_core.files import FILE_MODE, append_durably, write_durably

GENESIS = "0" * 64
"""Predecessor hash of the first entry."""

TORN = "torn"
"""Kind of the entry that acknowledges a line cut short by a crash."""

RESTORE = "Restore the ledger from the newest copy that verifies; do not mend it by hand."


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Attributes:
        number: Position, from 0.
        time: UTC, ISO 8601, to the second.
        kind: Kind of entry.
        values: Its other fields.
        before: Hash of the previous entry.
        hash: SHA-256 (hex) over all of the above.
    """

    number: int
    time: str
    kind: str
    values: dict[str, Any]
    before: str
    hash: str

    def line(self) -> bytes:
        """Entry as a line of the file."""
        return (json.dumps({**_hashed(self), "hash": self.hash}) + "\n").encode()


def read_chain(data: bytes) -> tuple[list[Entry], bytes]:
    """Verified entries of a whole file, and the incomplete data after the last entry.

    Raises:
        DataError: naming the entry at which the chain breaks.
    """
    return _read_lines(data, 0, GENESIS)


class Chain:
    """One chained file; safe for concurrent threads and processes.

    Args:
        path: The file; its head is stored in ``<stem>.head`` beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.guard = RLock()
        """Held while the entries in memory are changed or read."""
        self._head_path = path.with_suffix(".head")
        self._lock_path = path.with_suffix(".lock")
        self._entries: list[Entry] = []
        # Number of bytes read so far, and the last line of them.
        self._read = 0
        self._tail = b""
        self._held = False

    @contextmanager
    def writing(self) -> Iterator["Chain"]:
        """Hold the writer's lock, after acknowledging a line that a crash has cut short.

        Raises:
            DataError: if the chain is broken, or does not match its stored head.
        """
        # A new lock each time: one created before a fork does not work after it.
        with FileLock(self._lock_path, mode=FILE_MODE), self.guard:
            rest = self._refresh()
            if rest and not rest.endswith(b"\n"):
                append_durably(self.path, b"\n")
                # If only the newline was missing, this is a complete entry now.
                rest = self._refresh()
            if rest:
                # The fragment stays in the file; the next entry acknowledges it.
                self._append(TORN, {"sha256": hashlib.sha256(rest).hexdigest()}, rest)
            # No other writer until the lock is released: no need to read the file again.
            self._held = True
            try:
                yield self
            finally:
                self._held = False

    def entries(self) -> Sequence[Entry]:
        """All entries, verified, without an incomplete last line.

        Raises:
            DataError: if the chain is broken, or does not match its stored head.
        """
        with self.guard:
            if not self._held:
                self._refresh()
            return self._entries

    @property
    def head(self) -> str:
        """Hash of the last entry read or written."""
        return self._entries[-1].hash if self._entries else GENESIS

    def append(self, kind: str, values: dict[str, Any]) -> Entry:
        """Append an entry durably. Only inside :meth:`writing`.

        Raises:
            OSError: if it could not be written (a full disk); nothing may be released then.
        """
        return self._append(kind, values, b"")

    def _append(self, kind: str, values: dict[str, Any], fragment: bytes) -> Entry:
        """Append an entry after a fragment that is already in the file."""
        entry = _make(self._entries, kind, values)
        line = entry.line()
        append_durably(self.path, line)
        self._entries.append(entry)
        self._read += len(fragment) + len(line)
        self._tail = line
        # Only a missing head refuses the ledger. If a power cut undoes a later rename, the head is
        # an earlier entry's, which this chain has, too.
        write_durably(
            self._head_path,
            f"{entry.number} {entry.hash}\n".encode(),
            rename_too=not self._head_path.exists(),
        )
        return entry

    def _refresh(self) -> bytes:
        """Read what was added since the last call; returns the incomplete rest."""
        # Read the head before the file: a writer appends the line first, then updates the head.
        remembered = self._remembered()
        rest = self._read_on()
        self._check_head(remembered)
        return rest

    def _read_on(self) -> bytes:
        start = self._read - len(self._tail)
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                data = file.read()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise DataError(
                f"The ledger '{self.path}' cannot be read: {error.strerror}.",
                why="What has been spent cannot be told.",
            ) from None
        if not data.startswith(self._tail):
            raise DataError(
                f"The ledger '{self.path}' has become shorter, or another.",
                why="What it said had been spent would be forgotten.",
                remedy=RESTORE,
            )
        added, rest = _read_lines(data[len(self._tail) :], len(self._entries), self.head)
        if added:
            whole = data[: len(data) - len(rest)]
            self._entries += added
            self._read = start + len(whole)
            self._tail = whole[whole.rfind(b"\n", 0, -1) + 1 :]
        return rest

    def _remembered(self) -> tuple[int, str] | None:
        try:
            number, digest = self._head_path.read_text(encoding="ascii").split()
            return int(number), digest
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            # Matches no entry, so that a damaged head is refused.
            return -1, ""

    def _check_head(self, remembered: tuple[int, str] | None) -> None:
        if remembered is None:
            # Only a crash between writing the first line and its head leaves no head file.
            if len(self._entries) < 2 or self._head_path.exists():
                return
            remembered = -1, ""
        at, digest = remembered
        if not 0 <= at < len(self._entries) or self._entries[at].hash != digest:
            raise DataError(
                f"The ledger '{self.path}' is not the one that '{self._head_path.name}' remembers "
                f"({len(self._entries)} entries, entry {at} expected).",
                why="Entries were cut off or exchanged: what they said had been spent would be "
                "forgotten.",
                remedy=RESTORE,
            )


def _read_lines(data: bytes, number: int, before: str) -> tuple[list[Entry], bytes]:
    """Entries of further lines after the one with hash ``before``, and the incomplete rest."""
    entries: list[Entry] = []
    fragments = b""
    *lines, rest = data.split(b"\n")
    for line in lines:
        entry = _parse(line)
        if entry is None:
            fragments += line + b"\n"
            continue
        at = number + len(entries)
        if (entry.kind == TORN) != bool(fragments) or (
            fragments and entry.values.get("sha256") != hashlib.sha256(fragments).hexdigest()
        ):
            raise _broken(at)
        fragments = b""
        if entry.number != at or entry.before != before or not _is_whole(entry):
            raise _broken(at)
        entries.append(entry)
        before = entry.hash
    return entries, fragments + rest


def _parse(line: bytes) -> Entry | None:
    try:
        values = json.loads(line.decode())
        number, *texts = (values.pop(key) for key in ("n", "time", "kind", "prev", "hash"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if type(number) is not int or not all(isinstance(text, str) for text in texts):
        return None
    time, kind, before, digest = texts
    return Entry(number, time, kind, values, before, digest)


def _is_whole(entry: Entry) -> bool:
    try:
        return entry.hash == _hash(entry)
    except RecursionError:
        # Deeply nested JSON.
        return False


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
        remedy=RESTORE,
    )
