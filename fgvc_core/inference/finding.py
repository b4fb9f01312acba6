"""Finds the pictures that the user names: files, folders, patterns, or a list of paths."""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fgvc_core.data.walking import Entry, tree_pictures

_WILD = ("*", "?", "[")


@dataclass(frozen=True)
class Found:
    """One picture, or a name that leads to none.

    Attributes:
        name: Name for display; bytes that are not UTF-8 are escaped.
        root: Folder that the file must not lead out of; links are resolved.
        relative: Path below ``root``.
        fault: Why there is no picture; empty if there is one.
    """

    name: str
    root: Path
    relative: str
    fault: str = ""


def find_pictures(arguments: Iterable[str], listed: Iterable[str] = ()) -> list[Found]:
    """The pictures that arguments name, each once, in their order.

    A folder stands for the pictures below it, sorted, without hidden ones. A name with ``*``, ``?``
    or ``[`` that is not a file is a pattern (``**`` matches any depth): it stands for the files
    that it matches, or, if it matches only folders, for the pictures below them. ``-`` stands for
    ``listed``. A link that the user names is followed; one inside a named folder must not lead out
    of it.

    Args:
        arguments: Files, folders, patterns, ``-``.
        listed: One path each, with or without line ends, for instance from standard input.
    """
    seen: set[str] = set()
    pictures = []
    for argument in arguments:
        if argument == "-":
            names = [line.rstrip("\r\n") for line in listed]
            found: Iterator[Found] = (one for name in names if name for one in _named(name))
        else:
            found = _named(argument)
        for one in found:
            key = os.path.join(one.root, one.relative)
            if key not in seen:
                seen.add(key)
                pictures.append(one)
    return pictures


def _named(name: str) -> Iterator[Found]:
    path = Path(name)
    try:
        path = path.expanduser()
        yield from _at(name, path)
    except RuntimeError:
        # '~nosuch': there is no such user, or none at all.
        yield Found(_shown(name), path.parent, path.name, "there is no such user's home")
    except OSError as error:
        # For instance a name over 255 characters, or a folder without rights.
        yield Found(_shown(name), path.parent, path.name, error.strerror or str(error))
    except ValueError:
        yield Found(_shown(name), path.parent, path.name, "a file name holds no null character")


def _at(name: str, path: Path) -> Iterator[Found]:
    if path.is_dir():
        yield from _below(path)
    elif path.exists():
        yield _file(path)
    elif any(sign in name for sign in _WILD):
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            yield Found(_shown(name), path.parent, path.name, "the pattern matches nothing")
        # A ** pattern matches folders as well as the files in them.
        files = [match for match in matches if not Path(match).is_dir()]
        for file in files:
            yield _file(Path(file))
        if not files:
            for folder in matches:
                yield from _below(Path(folder))
    else:
        yield Found(_shown(name), path.parent, path.name, "there is no such file")


def _below(folder: Path) -> Iterator[Found]:
    root = Path(os.path.realpath(folder))
    empty = True
    unused: list[Entry] = []
    for path in tree_pictures(folder, unused.append):
        empty = False
        yield Found(_shown(folder / path), root, path)
    for entry in unused:
        if entry.unused is not None and entry.unused.lost:
            empty = False
            detail = f" ({entry.detail})" if entry.detail else ""
            fault = f"it is {entry.unused.words}{detail}. {entry.unused.remedy}".rstrip(". ")
            yield Found(_shown(folder / entry.path), root, entry.path, fault)
    if empty:
        yield Found(_shown(folder), root, "", "the folder holds no pictures")


def _file(path: Path) -> Found:
    real = Path(os.path.realpath(path))
    return Found(_shown(path), real.parent, real.name)


def _shown(name: str | Path) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
