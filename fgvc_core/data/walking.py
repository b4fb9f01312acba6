"""Walk over a data tree: each file, with the reason where it is not read as a picture."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fgvc_core.data.file_kinds import litter, looks_like_picture, unused_file
from fgvc_core.data.passing import refuse_passing
from fgvc_core.data.unused import HIDDEN, LEADS_OUT, LITTER, READ_ALREADY, UNLISTABLE, Reason
from fgvc_core.errors import DataError

FOLLOW = "FIELDMARK_FOLLOW_LINKS"
"""Environment variable: at 1, commands on this machine follow links out of a data tree."""

_MOST_LITTER = 10_000
"""Most files that are counted in one folder of litter."""


@dataclass(frozen=True)
class Entry:
    """A file of a tree, or a folder that is not looked into.

    Attributes:
        path: Path relative to the top.
        unused: Why it is not read as a picture; None if it is.
        folder: Whether it is a folder that was not looked into.
        detail: Further words on the reason, for instance the system's.
        target: For what is reached through a link: the resolved path, relative to the top where it
            lies below it.
    """

    path: str
    unused: Reason | None = None
    folder: bool = False
    detail: str = ""
    target: str | None = None

    @property
    def shown(self) -> str:
        """The path with the detail in brackets."""
        return f"{self.path} ({self.detail})" if self.detail else self.path


def may_follow(settings_say: bool = False) -> bool:
    """Whether links may lead out of a tree: by a site's settings, or by this machine's user."""
    return settings_say or os.environ.get(FOLLOW, "") == "1"


def walk(top: Path, *, follow_links: bool = False) -> Iterator[Entry]:
    """All files below a folder in a fixed order, those reached through links last.

    Links to folders are followed, each folder once, so that loops end and the walk takes no more
    than twice the folders that there are. A link that leads out of the tree is not followed unless
    ``follow_links``.

    Args:
        top: The folder; it may itself be a link.
        follow_links: Follow links that lead out of the tree.

    Raises:
        PassingFault: if the machine is at fault.
    """
    real_top = os.path.realpath(top)
    links: list[tuple[str, str]] = []
    yield from _plain(top, "", real_top, links.append)
    followed: set[str] = set()
    at = 0
    while at < len(links):
        path, parent = links[at]
        at += 1
        target = os.path.realpath(os.path.join(top, path))
        inside = target == real_top or target.startswith(real_top.rstrip("/") + "/")
        is_folder = _is_folder(os.path.join(top, path))
        if not inside and not follow_links:
            yield Entry(path, LEADS_OUT, is_folder, f"to {target}")
        elif not is_folder:
            # A broken link is a missing picture if its name is a picture's.
            reason = unused_file(os.path.join(top, path))
            yield Entry(path, reason, target=_relative(target, real_top))
        elif target in followed or (parent + "/").startswith(target.rstrip("/") + "/"):
            yield Entry(path, READ_ALREADY, True)
        else:
            followed.add(target)
            for entry in _plain(top, path, target, links.append, followed):
                if entry.folder or entry.unused is not None:
                    yield entry
                    continue
                real = os.path.join(target, os.path.relpath(entry.path, path))
                yield replace(entry, target=_relative(real, real_top))


def _plain(
    top: Path,
    start: str,
    real_start: str,
    linked: Callable[[tuple[str, str]], object],
    followed: set[str] | None = None,
) -> Iterator[Entry]:
    """Files below one folder without following links, which are handed to ``linked``."""
    # A list instead of recursion, which Python limits to about a thousand levels.
    waiting = [(start, real_start)]
    while waiting:
        below, real = waiting.pop()
        folder = os.path.join(top, below)
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda one: one.name)
        except OSError as error:
            refuse_passing(folder, error)
            yield Entry(below, UNLISTABLE, True, error.strerror or str(error))
            continue
        subfolders = []
        for one in entries:
            path, is_link = os.path.join(below, one.name), one.is_symlink()
            is_folder = not is_link and _is_folder_entry(one)
            if litter(one.name) or one.name.startswith("."):
                reason = LITTER if litter(one.name) else HIDDEN
                yield from _aside(top, path, is_folder, reason)
            elif is_link:
                linked((path, real))
            elif is_folder:
                subfolders.append((path, os.path.join(real, one.name)))
            else:
                yield Entry(path, unused_file(os.path.join(top, path)))
        for path, inner in reversed(subfolders):
            if followed is not None:
                if inner in followed:
                    yield Entry(path, READ_ALREADY, True)
                    continue
                followed.add(inner)
            waiting.append((path, inner))


def _aside(top: Path, path: str, is_folder: bool, reason: Reason) -> Iterator[Entry]:
    """Entries of hidden files and litter: each file that has a picture's name, else the folder."""
    if not is_folder:
        yield Entry(path, reason)
        return
    count = 0
    for folder, _, names in os.walk(os.path.join(top, path)):
        for name in names:
            if looks_like_picture(name) and count < _MOST_LITTER:
                count += 1
                yield Entry(os.path.relpath(os.path.join(folder, name), top), reason)
        if count >= _MOST_LITTER:
            break
    if not count:
        yield Entry(path, reason)


def distinct(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Entries, with pictures whose file is also reached in another way marked as read already."""
    paths: set[str] = set()
    for entry in entries:
        if entry.unused is None:
            if entry.target is not None and entry.target in paths:
                yield replace(entry, unused=READ_ALREADY)
                continue
            paths.add(entry.path if entry.target is None else entry.target)
        yield entry


def tree_pictures(top: Path, unused: Callable[[Entry], None] | None = None) -> Iterator[str]:
    """Paths of all pictures below a folder, relative to it and in a fixed order, each file once.

    Args:
        top: The folder.
        unused: Called with each file, and each folder that was not looked into, that is not read
            as a picture.

    Raises:
        DataError: without ``unused``, for the first folder that cannot be listed.
        PassingFault: if the machine is at fault.
    """
    for entry in distinct(walk(top, follow_links=may_follow())):
        if entry.unused is None:
            yield entry.path
        elif unused is not None:
            unused(entry)
        elif entry.unused is UNLISTABLE:
            raise no_listing(os.path.join(top, entry.path), entry.detail)


def no_listing(folder: str, detail: str) -> DataError:
    """Error for a folder that cannot be listed."""
    return DataError(
        f"The folder '{folder}' cannot be listed: {detail}.",
        why="Pictures in it would be passed over without a word.",
        remedy=UNLISTABLE.remedy,
    )


def _relative(real: str, real_top: str) -> str:
    inside = real.startswith(real_top.rstrip("/") + "/")
    return os.path.relpath(real, real_top) if inside else real


def _is_folder_entry(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        refuse_passing(entry.path, error)
        return False


def _is_folder(path: str) -> bool:
    """Whether a path leads to a folder; False if it cannot be determined (a circular link)."""
    try:
        return os.path.isdir(path)
    except OSError as error:
        refuse_passing(path, error)
        return False
