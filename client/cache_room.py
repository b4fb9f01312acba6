"""Pruning of the cache of decoded pictures and features to ``limits.cache_gb``.

Every new picture size, crop or backbone adds an entry, so a coordinator could fill the disk with
announcements. Entries are removed between messages, least recently used first, and rebuilt on
demand. No request is refused because of the cache: an entry's size reveals the number of pictures,
and no answer may depend on that.

Homes of the same account can share a cache. Each holds a shared lock while it answers, and entries
are removed only under the exclusive lock. Files that do not look like our banks and stores are left
alone.
"""

import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fgvc_core.errors import FieldmarkError
from fgvc_core.files import FILE_MODE, private_folder
from fieldmark.client.site import Site

LOOK_EVERY_S = 60.0
"""Minimum interval between two checks of a cache, in seconds; each lists its files."""
IN_USE = "in-use.lock"
_BANK = re.compile(r"[0-9a-f]{64}(\.tolerant)?\.(faults\.json|npy|lock|partial)")
_STORE = re.compile(r"v\d+-[0-9a-f]{40}")
_OPENED = re.compile(r"[0-9a-f]{40}\.keys")


@contextmanager
def in_use(cache: str) -> Iterator[None]:
    """Hold a shared lock on a cache, so that no other home removes entries.

    Does nothing if the cache is not writable; the work itself will report that.

    Args:
        cache: Folder of the cache; empty if there is none.
    """
    with _locked(Path(cache), fcntl.LOCK_SH) if cache else _nothing():
        yield


@contextmanager
def _nothing() -> Iterator[bool]:
    yield False


@contextmanager
def _locked(cache: Path, how: int) -> Iterator[bool]:
    """Yield whether the lock was acquired; ``how`` are the flags of ``flock``."""
    descriptor, got = -1, False
    try:
        private_folder(cache)
        descriptor = os.open(cache / IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        fcntl.flock(descriptor, how)
        got = True
    except OSError:
        pass
    try:
        yield got
    finally:
        if descriptor >= 0:
            if got:
                # Closing alone would not release it: a forked child shares the descriptor.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


@dataclass(frozen=True)
class _Entry:
    used: float
    nbytes: int
    paths: tuple[Path, ...]


class CacheRoom:
    """Prunes the cache of one site that has its own pictures.

    Args:
        home: Home of the site.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._due = 0.0

    def look(self) -> list[str]:
        """Prune the cache, at most once a minute; call it only while nothing uses the cache.

        Returns:
            Names of the removed entries.
        """
        if time.monotonic() < self._due:
            return []
        self._due = time.monotonic() + LOOK_EVERY_S
        try:
            site = Site.open(self._home)
            # Simulated sites share a cache that others may be using.
            if site.rows is not None:
                return []
            with _locked(site.cache, fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
                if alone:
                    return make_room(site)
            # Another home is using it: try again after the next message.
            self._due = 0.0
            return []
        except (FieldmarkError, OSError) as error:
            logging.getLogger(f"fieldmark.site.{self._home}").warning(
                "the cache was not looked at: %s", error
            )
            return []


def make_room(site: Site) -> list[str]:
    """Remove the least recently used entries until the rest is within the limit.

    The most recent entry always stays: a run would otherwise rebuild it every round.

    Returns:
        Names of the removed entries.

    Raises:
        OSError: if the cache cannot be listed.
    """
    entries = sorted(_entries(site.cache), key=lambda entry: entry.used)
    most = site.settings.limits.cache_gb * 1e9
    total, gone = sum(entry.nbytes for entry in entries), []
    for entry in entries[:-1]:
        if total <= most:
            break
        # In reverse order, so that pictures go before their *.faults.json: a bank without that
        # file is refused until somebody deletes it.
        for path in reversed(entry.paths):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        total -= entry.nbytes
        gone.append(entry.paths[0].name)
    if gone:
        logging.getLogger(f"fieldmark.site.{site.home}").warning(
            "limits.cache_gb = %g: %d entries of the cache that were used longest ago are gone: %s",
            site.settings.limits.cache_gb,
            len(gone),
            ", ".join(name[:40] for name in gone[:5]),
        )
    return gone


def _entries(cache: Path) -> list[_Entry]:
    """Banks of pictures (files with one stem), stores of features (folders), and lists of sound
    pictures."""
    banks: dict[str, list[Path]] = {}
    for path in sorted((cache / "pictures").glob("*")):
        if _BANK.fullmatch(path.name) and path.is_file():
            banks.setdefault(path.name.split(".")[0], []).append(path)
    folders = (path for path in sorted((cache / "features").glob("*")) if path.is_dir())
    stores = [[path] for path in folders if _STORE.fullmatch(path.name)]
    opened = [[p] for p in sorted((cache / "opened").glob("*")) if _OPENED.fullmatch(p.name)]
    every = (*banks.values(), *stores, *opened)
    return [entry for paths in every if (entry := _entry(tuple(paths)))]


def _entry(paths: tuple[Path, ...]) -> _Entry | None:
    files = [file for path in paths for file in ([path] if path.is_file() else path.glob("*"))]
    found = [file.stat() for file in files]
    if not found:
        return None
    # With relatime, Linux updates the access time at least once a day.
    used = max(max(stat.st_atime, stat.st_mtime) for stat in found)
    return _Entry(used, sum(stat.st_size for stat in found), paths)
