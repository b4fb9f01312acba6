"""A file of entries, each of which holds the hash of the one before.

One entry is one line of JSON. Changing, dropping or reordering a line breaks the chain
from there on. Cutting lines off the end, or putting back an old copy, leaves a whole chain;
only somebody who remembers a later head can see it. Three do: the file ``ledger.head``
beside it, the register in the user's state folder (since its last charge or reply), and the
coordinator, who names the last head that it has seen, in whichever run, in each request.

What nobody can see: ledger and ``ledger.head`` put back together, where the register was
put back too and no coordinator has seen more. And the hashes have no secret in them: whoever
can write here, and rewrites all from some line on with the head, leaves a chain that holds;
again only the register and the coordinator remember another head.
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
"""What the first entry names as the one before."""

TORN = "torn"
"""Kind of the entry that owns up to a line which a crash cut short."""

RESTORE = "Restore the ledger from the newest copy that verifies; do not mend it by hand."


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
    return _read_lines(data, 0, GENESIS)


class Chain:
    """One chained file; several threads and processes may use it at once.

    Args:
        path: Where it is; the head is remembered in ``<stem>.head`` beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.guard = RLock()
        """Held while the entries in memory change or are looked through."""
        self._head_path = path.with_suffix(".head")
        self._lock_path = path.with_suffix(".lock")
        self._entries: list[Entry] = []
        # How much of the file the entries are, and the last of those bytes.
        self._read = 0
        self._tail = b""
        self._held = False

    @contextmanager
    def writing(self) -> Iterator["Chain"]:
        """Hold the one writer's lock; a torn line that a crash has left is closed first.

        Raises:
            DataError: if the chain does not hold, or is shorter than its remembered head.
        """
        # A lock of its own each time: one that was made before a fork is of no use after it.
        with FileLock(self._lock_path, mode=FILE_MODE), self.guard:
            rest = self._refresh()
            if rest and not rest.endswith(b"\n"):
                append_durably(self.path, b"\n")
                # Where nothing but the line's end was missing, this is a whole entry now.
                rest = self._refresh()
            if rest:
                # The fragment stays where it is; an entry after it owns up to it.
                self._append(TORN, {"sha256": hashlib.sha256(rest).hexdigest()}, rest)
            # Until the lock is given back nobody else adds anything: no need to look again.
            self._held = True
            try:
                yield self
            finally:
                self._held = False

    def entries(self) -> Sequence[Entry]:
        """All entries, verified; a torn rest is left out.

        Raises:
            DataError: if the chain does not hold, or is shorter than its remembered head.
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
        """Add an entry; on the disk when this returns. Only inside :meth:`writing`.

        Raises:
            OSError: if it could not be written (a full disk): then nothing may follow.
        """
        return self._append(kind, values, b"")

    def _append(self, kind: str, values: dict[str, Any], fragment: bytes) -> Entry:
        """Add an entry after a fragment that is in the file already."""
        entry = _make(self._entries, kind, values)
        line = entry.line()
        append_durably(self.path, line)
        self._entries.append(entry)
        self._read += len(fragment) + len(line)
        self._tail = line
        write_durably(self._head_path, f"{entry.number} {entry.hash}\n".encode())
        return entry

    def _refresh(self) -> bytes:
        """Read what was added since the last time; returns the torn rest."""
        # The head comes first: who appends writes the line, then the head that names it.
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
            return -1, ""

    def _check_head(self, remembered: tuple[int, str] | None) -> None:
        if remembered is None:
            # Only a crash between the first line and its head leaves one without the other.
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
    """Entries of further lines, which go on from an entry's hash; and what follows the last."""
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
