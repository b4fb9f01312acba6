"""Files that are private, and bytes that are on the disk before a function returns.

Everything in a site's home, in its cache and in the private parts of a run's folder is made
here, or narrowed here where a library makes it: files have mode 0600 and folders 0700, whatever
the umask says. What other people are meant to read (a report, metrics) follows the umask.

A file that is replaced is replaced whole, here and nowhere else. Whether it also survives a power
cut (``durable``) is decided by each caller: it must where money, privacy or hours hang on it.
"""

import errno
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

FILE_MODE, FOLDER_MODE = 0o600, 0o700
PRIVATE_UMASK = 0o077
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk, a quota or a file that takes no more."""


def private_folder(path: Path) -> Path:
    """Make a folder, and those above it that are missing, for their owner alone (mode 0700).

    A folder that exists keeps its mode: it may be one that the user shares on purpose.

    Returns:
        The folder.

    Raises:
        OSError: if it cannot be made.
    """
    if not path.is_dir():
        private_folder(path.parent)
        # Not by mkdir's own mode alone: it would leave folders in between to the umask.
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)
    return path


def narrow(path: Path) -> None:
    """Take a file that a library has made, or a folder, away from everybody but its owner.

    Raises:
        OSError: if it is somebody else's.
    """
    os.chmod(path, FOLDER_MODE if path.is_dir() else FILE_MODE)


def make_private(path: Path) -> None:
    """Make an empty file for its owner alone, for a library that writes into it by name.

    Raises:
        OSError: if it cannot be made.
    """
    os.close(_open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))


def write_privately(path: Path, data: bytes | str) -> None:
    """Write a file for its owner alone (mode 0600); text in UTF-8.

    Raises:
        OSError: if it cannot be written; part of it may be there.
    """
    descriptor = _open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        _write_all(descriptor, data.encode() if isinstance(data, str) else data)
    finally:
        os.close(descriptor)


def append_durably(path: Path, data: bytes) -> None:
    """Append to a private file and sync it; a new file's folder is synced too.

    Raises:
        OSError: if not all of it could be written and synced; part of it may be there.
    """
    fresh = not path.exists()
    descriptor = _open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if fresh:
        sync_folder(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a whole private file or nothing: aside, synced, renamed, folder synced.

    Raises:
        OSError: if it could not; the file is then as it was before.
    """
    with replacing(path, private=True, durable=True) as aside:
        write_privately(aside, data)


@contextmanager
def replacing(
    path: Path, *, private: bool = False, durable: bool = False, many_writers: bool = False
) -> Iterator[Path]:
    """A file to write beside ``path``, which it replaces when the block ends well.

    A reader sees the old file or the new one. If the block raises, the old one stays.

    Args:
        path: What is to be replaced, or made.
        private: Mode 0600, also where a library makes the file anew.
        durable: Sync the file before it is renamed, and its folder after.
        many_writers: Other processes may write the same path at the same time.

    Raises:
        OSError: if it cannot be written or renamed.
    """
    process = f".{os.getpid()}" if many_writers else ""
    aside = path.with_name(f"{path.name}{process}.part")
    try:
        if private:
            make_private(aside)
        yield aside
        if private:
            narrow(aside)
        if durable:
            _sync(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Replace a file that everybody may read by a text in UTF-8.

    Raises:
        OSError: if it cannot be written; the old file stays.
    """
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def replace_json(path: Path, values: Any) -> None:
    """Replace a file that everybody may read by JSON.

    Raises:
        OSError: if it cannot be written; the old file stays.
    """
    replace_text(path, json.dumps(values, indent=1))


def replace_private_json(path: Path, values: Any) -> None:
    """Replace a private file, which several processes may write, by JSON.

    Raises:
        OSError: if it cannot be written; the old file stays.
    """
    with replacing(path, private=True, many_writers=True) as aside:
        write_privately(aside, json.dumps(values, indent=1))


def read_json(path: Path) -> Any:
    """The values of a JSON file, or None where there is none or it is not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that the names in it last."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PrivateLogFile(RotatingFileHandler):
    """A rotating log that its owner alone can read (mode 0600), each of its files."""

    def _open(self) -> io.TextIOWrapper:
        descriptor = _open(Path(self.baseFilename), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return open(descriptor, self.mode, encoding=self.encoding, errors=self.errors)  # type: ignore[return-value]


def widely_readable(root: Path) -> list[Path]:
    """What below a folder, itself included, others than its owner can get at.

    Links are not followed: what they lead to is not in the folder.
    """
    return [
        path
        for path in (root, *sorted(root.rglob("*")))
        if not path.is_symlink() and path.stat().st_mode & 0o077
    ]


def _open(path: Path, flags: int) -> int:
    """A descriptor of a file that is private from its first byte on."""
    descriptor = os.open(path, flags, FILE_MODE)
    try:
        # A file that was there already may have been made with a wider mode.
        if os.fstat(descriptor).st_mode & 0o777 != FILE_MODE:
            os.fchmod(descriptor, FILE_MODE)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
