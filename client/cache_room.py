"""The cache of decoded pictures and features, kept within ``limits.cache_gb``.

Each recipe with another picture size, crop or backbone leaves one more entry there: a coordinator
that announces run after run would fill the disk. What was used longest ago goes, between two
messages, and is made anew where it is asked for again. Nothing is refused for it: how large an
entry is says how many pictures there are, and no answer must turn on that.

A cache is its account's, and other homes may be at work in it: each says so by a lock that they
share while they answer, and nothing is removed before all have answered. What is not named as our
banks and stores are is somebody else's, and stays.
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
"""Between two looks at a cache, of which each lists its files."""
IN_USE = "in-use.lock"
_BANK = re.compile(r"[0-9a-f]{64}(\.tolerant)?\.(faults\.json|npy|lock|partial)")
_STORE = re.compile(r"v\d+-[0-9a-f]{40}")


@contextmanager
def in_use(cache: str) -> Iterator[None]:
    """Say that a home is at work in a cache, so that no other home removes anything.

    Where the cache cannot be written to there is no such word; the work will say why.

    Args:
        cache: Its folder; empty: none.
    """
    with _locked(Path(cache), fcntl.LOCK_SH) if cache else _nothing():
        yield


@contextmanager
def _nothing() -> Iterator[bool]:
    yield False


@contextmanager
def _locked(cache: Path, how: int) -> Iterator[bool]:
    """Whether the lock was got; without waiting where ``how`` says so."""
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
                # A fork that outlives this would keep it.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


@dataclass(frozen=True)
class _Entry:
    used: float
    nbytes: int
    paths: tuple[Path, ...]


class CacheRoom:
    """Looks after the cache of one site that has pictures of its own.

    Args:
        home: The site's.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._due = 0.0

    def look(self) -> list[str]:
        """Remove what is too much, at most once a minute; called while nothing uses the cache.

        Returns:
            The names of the entries that went.
        """
        if time.monotonic() < self._due:
            return []
        self._due = time.monotonic() + LOOK_EVERY_S
        try:
            site = Site.open(self._home)
            # Simulated sites share a cache, in which others may be at work.
            if site.rows is not None:
                return []
            with _locked(site.cache, fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
                if alone:
                    return make_room(site)
            # Another home is at work in it: looked at again after the next message.
            self._due = 0.0
            return []
        except (FieldmarkError, OSError) as error:
            logging.getLogger(f"fieldmark.site.{self._home}").warning(
                "the cache was not looked at: %s", error
            )
            return []


def make_room(site: Site) -> list[str]:
    """Remove the entries that were used longest ago, until the rest is within the limit.

    The one that was used last stays, however large it is: a run would make it anew each round.

    Returns:
        The names of the entries that went.

    Raises:
        OSError: if the cache cannot be listed.
    """
    entries = sorted(_entries(site.cache), key=lambda entry: entry.used)
    most = site.settings.limits.cache_gb * 1e9
    total, gone = sum(entry.nbytes for entry in entries), []
    for entry in entries[:-1]:
        if total <= most:
            break
        # The last name first: pictures go before the note of which of them are black for want of
        # reading. A bank without its note is refused until somebody deletes it.
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
    """Banks of pictures, each a few files of one name, and stores of features, each a folder."""
    banks: dict[str, list[Path]] = {}
    for path in sorted((cache / "pictures").glob("*")):
        if _BANK.fullmatch(path.name) and path.is_file():
            banks.setdefault(path.name.split(".")[0], []).append(path)
    folders = (path for path in sorted((cache / "features").glob("*")) if path.is_dir())
    stores = [[path] for path in folders if _STORE.fullmatch(path.name)]
    return [entry for paths in (*banks.values(), *stores) if (entry := _entry(tuple(paths)))]


def _entry(paths: tuple[Path, ...]) -> _Entry | None:
    files = [file for path in paths for file in ([path] if path.is_file() else path.glob("*"))]
    found = [file.stat() for file in files]
    if not found:
        return None
    # Linux notes a file's reading once a day at least (relatime), its making always.
    used = max(max(stat.st_atime, stat.st_mtime) for stat in found)
    return _Entry(used, sum(stat.st_size for stat in found), paths)
