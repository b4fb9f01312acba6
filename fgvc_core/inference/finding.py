"""Finds the pictures that the user names: files, folders, patterns, or a list of paths."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fgvc_core.data.boxes import read_boxes
from fgvc_core.data.files import Box
from fgvc_core.data.unused import Unused
from fgvc_core.data.walking import Entry, tree_pictures
from fgvc_core.errors import DataError

_WILD = ("*", "?", "[")


@dataclass(frozen=True)
class Found:
    """One picture, or a name that leads to none.

    Attributes:
        name: Name for display; bytes that are not UTF-8 are escaped.
        root: Folder that the file must not lead out of; links are resolved.
        relative: Path below ``root``.
        fault: Why there is no picture; empty if there is one.
        box: Subject to cut out; None: the whole picture.
    """

    name: str
    root: Path
    relative: str
    fault: str = ""
    box: Box | None = None


def with_boxes(
    found: Sequence[Found], file: Path, confidence: float, category: str | None
) -> list[Found]:
    """One entry for each box of each picture; a picture without one gets a fault that says so.

    Paths in the file are taken as they are, relative to the file's folder, or relative to any
    folder that the picture lies below.

    Args:
        found: The pictures.
        file: MegaDetector's or COCO's JSON.
        confidence: Least confidence of a detection, 0 to 1.
        category: The only category to take; None: all.

    Raises:
        DataError: if the file cannot be read.
    """
    home = Path(os.path.realpath(file.parent))
    boxes = read_boxes(home, home / file.name, confidence, category)
    known: dict[str, list[Box]] = {}
    for name, own in boxes.items():
        known[os.path.realpath(home / name)] = own
    entries = []
    for one in found:
        if one.fault:
            entries.append(one)
            continue
        path = os.path.realpath(one.root / one.relative)
        parts = Path(path).parts
        tails = ("/".join(parts[at:]) for at in range(1, len(parts)))
        own = known.get(path) or next((boxes[t] for t in tails if t in boxes), [])
        if not own:
            said = f"{file.name} has no box of it at or above confidence {confidence:g}"
            entries.append(replace(one, fault=said))
        for number, box in enumerate(own, start=1):
            name = one.name if len(own) == 1 else f"{one.name}#{number}"
            entries.append(replace(one, name=name, box=box))
    return entries


def find_pictures(
    arguments: Iterable[str], listed: Iterable[str] = (), unused: Unused | None = None
) -> list[Found]:
    """The pictures that arguments name, each once, in their order.

    A folder stands for the pictures below it, sorted, without hidden ones. A name with ``*``, ``?``
    or ``[`` that is not a file is a pattern (``**`` matches any depth): it stands for the files
    that it matches, or, if it matches only folders, for the pictures below them. ``-`` stands for
    ``listed``. A link that the user names is followed; one inside a named folder must not lead out
    of it.

    Args:
        arguments: Files, folders, patterns, ``-``.
        listed: One path each, with or without line ends, for instance from standard input.
        unused: What lies in a named folder and is meant to be passed over is recorded here.

    Raises:
        DataError: if there is not one.
    """
    seen: set[str] = set()
    pictures = []
    for argument in arguments:
        if argument == "-":
            names = [line.rstrip("\r\n") for line in listed]
            found: Iterator[Found] = (one for name in names if name for one in _named(name, unused))
        else:
            found = _named(argument, unused)
        for one in found:
            key = os.path.join(one.root, one.relative)
            if key not in seen:
                seen.add(key)
                pictures.append(one)
    if not pictures:
        raise DataError("No picture was named.", remedy="Name files, folders or patterns.")
    return pictures


def _named(name: str, unused: Unused | None) -> Iterator[Found]:
    path = Path(name)
    try:
        path = path.expanduser()
        yield from _at(name, path, unused)
    except RuntimeError:
        # '~nosuch': there is no such user, or none at all.
        yield Found(_shown(name), path.parent, path.name, "there is no such user's home")
    except OSError as error:
        # For instance a name over 255 characters, or a folder without rights.
        yield Found(_shown(name), path.parent, path.name, error.strerror or str(error))
    except ValueError:
        yield Found(_shown(name), path.parent, path.name, "a file name holds no null character")


def _at(name: str, path: Path, unused: Unused | None) -> Iterator[Found]:
    if path.is_dir():
        yield from _below(path, unused)
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
                yield from _below(Path(folder), unused)
    else:
        yield Found(_shown(name), path.parent, path.name, "there is no such file")


def _below(folder: Path, aside: Unused | None) -> Iterator[Found]:
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
            fault = f"{entry.unused.words}{detail}. {entry.unused.remedy}".rstrip(". ")
            yield Found(_shown(folder / entry.path), root, entry.path, fault)
        elif entry.unused is not None and aside is not None:
            aside.add(entry.unused, str(folder / entry.path))
    if empty:
        yield Found(_shown(folder), root, "", "the folder holds no pictures")


def _file(path: Path) -> Found:
    real = Path(os.path.realpath(path))
    return Found(_shown(path), real.parent, real.name)


def _shown(name: str | Path) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
