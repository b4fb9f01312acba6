"""The cache of decoded pictures and features, kept within ``limits.cache_gb``.

Each recipe with another picture size, crop or backbone leaves one more entry there: a coordinator
that announces run after run would fill the disk. What was used longest ago goes, between two
messages, and is made anew where it is asked for again. Nothing is refused for it: how large an
entry is says how many pictures there are, and no answer must turn on that.
"""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from client.site import Site
from fgvc_core.errors import FieldmarkError

LOOK_EVERY_S = 60.0
"""Between two looks at a cache, of which each lists its files."""


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
            return [] if site.rows is not None else make_room(site)
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
        for path in entry.paths:
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
        banks.setdefault(path.name.split(".")[0], []).append(path)
    stores = [[path] for path in sorted((cache / "features").glob("*")) if path.is_dir()]
    return [entry for paths in (*banks.values(), *stores) if (entry := _entry(tuple(paths)))]


def _entry(paths: tuple[Path, ...]) -> _Entry | None:
    files = [file for path in paths for file in ([path] if path.is_file() else path.glob("*"))]
    found = [file.stat() for file in files]
    if not found:
        return None
    # Linux notes a file's reading once a day at least (relatime), its making always.
    used = max(max(stat.st_atime, stat.st_mtime) for stat in found)
    return _Entry(used, sum(stat.st_size for stat in found), paths)
