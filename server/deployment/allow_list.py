"""The allow-list ``sites.json``, which binds each site's key to its name.

It is replaced atomically under a lock, so readers see the old list or the new one. A removed key
stays in it as removed: it can never be registered again under any name.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from fgvc_core.errors import ConfigurationError, nearest
from fgvc_core.files import FILE_MODE, read_json, replace_private_json
from fgvc_core.protocol.keys import fingerprint, public_text, read_public
from fgvc_core.protocol.kit import is_site_name

FILE = "sites.json"


@dataclass(frozen=True)
class ListedSite:
    """One site's registration."""

    name: str
    public_key: str
    fingerprint: str
    added: str
    removed: str = ""
    why: str = ""


class AllowList:
    """The allow-list in a coordinator's folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._lock = FileLock(folder / f"{FILE}.lock", timeout=10, mode=FILE_MODE)
        self._read: tuple[float, int] = (0.0, 0)
        self._entries: list[ListedSite] = []

    def entries(self) -> list[ListedSite]:
        """All entries, including removed ones, in order of registration."""
        try:
            found = self._path.stat()
        except OSError:
            return []
        stamp = (found.st_mtime, found.st_ino)
        if stamp != self._read:
            self._entries = [ListedSite(**values) for values in read_json(self._path) or []]
            self._read = stamp
        return self._entries

    def active(self) -> dict[str, ListedSite]:
        """Site name -> its entry, sorted by name."""
        found = {entry.name: entry for entry in self.entries() if not entry.removed}
        return dict(sorted(found.items()))

    def by_fingerprint(self, digest: str) -> ListedSite | None:
        """The active site whose key has this fingerprint."""
        return next((e for e in self.entries() if e.fingerprint == digest and not e.removed), None)

    def add(
        self, name: str, public_key: str, first: Callable[[ListedSite], object] | None = None
    ) -> ListedSite:
        """Register a site.

        Args:
            name: The site's.
            public_key: One line of text.
            first: Called with the entry before it is written; what it raises keeps the name and the
                key free.

        Raises:
            ConfigurationError: if the name is taken or invalid, or the key was ever registered.
            PeerError: if the key cannot be read.
        """
        if not is_site_name(name):
            raise ConfigurationError(
                f"'{name[:80]}' cannot be a site's name.",
                remedy="Use letters, digits, dots, underscores and hyphens, a letter first.",
            )
        with self._lock:
            taken = {n.casefold(): n for n in self.active()}
            if name.casefold() in taken:
                raise ConfigurationError(
                    f"There is a site '{taken[name.casefold()]}' already.",
                    why="A name is a site's identity; two could not be told apart.",
                    remedy="Choose another name, or remove that site first.",
                )
            entry = self._entry(name, public_key)
            if first is not None:
                first(entry)
            self._write([*self.entries(), entry])
        return entry

    def replace(self, name: str, public_key: str, why: str) -> ListedSite:
        """Give a site another key; the old one is removed."""
        with self._lock:
            self.known(name)
            entry = self._entry(name, public_key)
            self._write([*self._without(name, why), entry])
        return entry

    def remove(self, name: str) -> ListedSite:
        """Revoke a site's key.

        Raises:
            ConfigurationError: if there is no such site.
        """
        with self._lock:
            entry = self.known(name)
            self._write(self._without(name, "removed"))
        return entry

    def known(self, name: str) -> ListedSite:
        """An active site's entry.

        Raises:
            ConfigurationError: if there is no such site.
        """
        active = self.active()
        if name not in active:
            raise ConfigurationError(
                f"There is no site '{name}'.",
                remedy=nearest(name, active) or f"Registered: {', '.join(active) or 'none'}.",
            )
        return active[name]

    def _without(self, name: str, why: str) -> list[ListedSite]:
        now = _now()
        return [
            ListedSite(**{**asdict(e), "removed": now, "why": why})
            if e.name == name and not e.removed
            else e
            for e in self.entries()
        ]

    def _entry(self, name: str, public_key: str) -> ListedSite:
        key = read_public(public_key.strip())
        digest = fingerprint(key)
        for entry in self.entries():
            if entry.fingerprint == digest:
                state = f"removed on {entry.removed}" if entry.removed else "registered"
                raise ConfigurationError(
                    f"This key is {state} as site '{entry.name}'.",
                    why="A key stands for one site, once; a removed one never comes back.",
                    remedy="Make another: fieldmark site key FILE.",
                )
        # Written from the parsed key, which drops the comment of the site's key file.
        return ListedSite(name, public_text(key), digest, _now())

    def _write(self, entries: list[ListedSite]) -> None:
        values: list[dict[str, Any]] = [asdict(entry) for entry in entries]
        replace_private_json(self._path, values)
        self._path.chmod(0o600)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
