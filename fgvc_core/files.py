"""Private files (mode 0600), durable writes, and atomic replacement.

Everything in a site's home, in its cache and in the private parts of a run's folder is made here,
or narrowed here if a library makes it: files have mode 0600 and folders 0700, regardless of the
umask. Files for other readers (a report, metrics) follow the umask.

Files are replaced atomically, and only by this module. The caller decides whether a replacement
must also survive a power cut (``durable``): it must where money, privacy or hours of work depend on
it.
"""

import errno
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from fgvc_core.errors import ConfigurationError

FILE_MODE, FOLDER_MODE = 0o600, 0o700
PRIVATE_UMASK = 0o077
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exhausted quota, or a file at its size limit."""


def user_home(variable: str) -> Path:
    """The user's home folder.

    Args:
        variable: Environment variable that names the wanted folder directly.

    Raises:
        ConfigurationError: if there is none: neither HOME nor an entry in the list of users, as in
            a container that runs under any number.
    """
    try:
        return Path.home()
    except RuntimeError:
        raise ConfigurationError(
            "This user has no home folder: HOME is not set, and the system does not know user "
            f"number {os.getuid()}.",
            why="Decoded pictures and the register of data are kept below it.",
            remedy=f"Set HOME, or {variable}, to a folder that you may write to.",
        ) from None


def private_folder(path: Path) -> Path:
    """Make a folder and its missing parents for their owner only (mode 0700).

    An existing folder keeps its mode: the user may share it on purpose.

    Returns:
        The folder.

    Raises:
        OSError: if it cannot be made.
    """
    if not path.is_dir():
        private_folder(path.parent)
        # One folder at a time: mkdir(parents=True) applies the mode to the last one only.
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)
    return path


def narrow(path: Path) -> None:
    """Restrict a file or folder that a library has made to its owner.

    Raises:
        OSError: if another user owns it.
    """
    os.chmod(path, FOLDER_MODE if path.is_dir() else FILE_MODE)


def make_private(path: Path) -> None:
    """Make an empty private file for a library that writes to it by name.

    Raises:
        OSError: if it cannot be made.
    """
    os.close(_open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))


def write_privately(path: Path, data: bytes | str) -> None:
    """Write a private file (mode 0600); text as UTF-8.

    Raises:
        OSError: if it cannot be written; a partial file may remain.
    """
    descriptor = _open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        _write_all(descriptor, data.encode() if isinstance(data, str) else data)
    finally:
        os.close(descriptor)


def append_durably(path: Path, data: bytes) -> None:
    """Append to a private file and sync it; also sync the folder of a new file.

    Raises:
        OSError: if the data could not be written and synced; a part of them may remain.
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


def write_durably(path: Path, data: bytes, *, rename_too: bool = True) -> None:
    """Replace a private file atomically and durably.

    Args:
        path: The file to make or replace.
        data: All of its contents.
        rename_too: Also sync the folder. If not, a power cut may leave the old file, whole.

    Raises:
        OSError: if that failed; the old file is unchanged.
    """
    with replacing(path, private=True, durable=True, rename_too=rename_too) as aside:
        write_privately(aside, data)


@contextmanager
def replacing(
    path: Path,
    *,
    private: bool = False,
    durable: bool = False,
    many_writers: bool = False,
    rename_too: bool = True,
) -> Iterator[Path]:
    """A temporary file beside ``path``, which replaces it when the block ends without an error.

    A reader sees either the old file or the new one. If the block raises, the old one stays.

    Args:
        path: The file to make or replace.
        private: Use mode 0600, even if a library makes the temporary file anew.
        durable: Sync the file before it is renamed, and its folder afterwards.
        many_writers: Other processes may write the same path at the same time.
        rename_too: With ``durable``, also sync the folder, without which a power cut may undo the
            renaming.

    Raises:
        OSError: if the file cannot be written or renamed.
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
    if durable and rename_too:
        sync_folder(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Replace a public file by a text in UTF-8.

    Raises:
        OSError: if it cannot be written; the old file stays.
    """
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def replace_json(path: Path, values: Any) -> None:
    """Replace a public file by JSON.

    Raises:
        OSError: if it cannot be written; the old file stays.
    """
    replace_text(path, json.dumps(values, indent=1))


def replace_private_json(path: Path, values: Any) -> None:
    """Replace a private file by JSON; several processes may do so at once.

    Raises:
        OSError: if it cannot be written; the old file stays.
    """
    with replacing(path, private=True, many_writers=True) as aside:
        write_privately(aside, json.dumps(values, indent=1))


def read_json(path: Path) -> Any:
    """The values of a JSON file; None if it is missing or invalid."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sync_folder(folder: Path) -> None:
    """Sync a folder, which makes renames and new files in it durable."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PrivateLogFile(RotatingFileHandler):
    """A rotating log, all files of which are private (mode 0600).

    While it cannot be written (a full disk), records are counted; the first that can be written
    again is preceded by how many may be missing.
    """

    lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, and before it how many were lost, if any were."""
        if self.lost:
            lost, self.lost = self.lost, 0
            text = f"up to {lost} records are missing here: the log could not be written"
            values = {**vars(record), "msg": text, "args": (), "exc_info": None, "exc_text": None}
            super().emit(logging.makeLogRecord(values))
            # It failed again, and was counted as one of them.
            self.lost += lost - 1 if self.lost else 0
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Count a record that could not be written; logging would print a traceback for each."""
        self.lost += 1

    def _open(self) -> io.TextIOWrapper:
        descriptor = _open(Path(self.baseFilename), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return open(descriptor, self.mode, encoding=self.encoding, errors=self.errors)  # type: ignore[return-value]


def check_secret(path: Path) -> None:
    """Refuse a secret that others on this machine may read or change.

    Raises:
        ConfigurationError: if it is missing, or its mode is wider than 0600.
    """
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise ConfigurationError(
            f"The secret '{path}' is not there: {error.strerror}.",
            remedy="Restore it from the backup.",
        ) from None
    if mode & 0o077:
        raise ConfigurationError(
            f"The secret '{path}' has mode {mode:04o}; 0600 is the widest allowed.",
            why="Others on this machine can read it.",
            remedy=f"chmod 600 {path}; if others may have read it, make a new one.",
        )


def check_unchanged_by_others(paths: Iterable[Path]) -> None:
    """Refuse files that everybody on this machine may write to; missing ones are skipped.

    Raises:
        ConfigurationError: naming the first.
    """
    for path in paths:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0
        # Not the group's bit: where the umask is 002, everybody's group is a private one.
        if mode & 0o002:
            raise ConfigurationError(
                f"'{path}' has mode {mode:04o}: others on this machine can change it.",
                why="Policy, keys and ledger are what the site's word rests on.",
                remedy=f"See that it is as you left it, then: chmod o-w {path}",
            )


def widely_readable(root: Path) -> list[Path]:
    """Files and folders below a folder, including itself, that others than the owner can access.

    Links are skipped: their targets are not in the folder.
    """
    return [
        path
        for path in (root, *sorted(root.rglob("*")))
        if not path.is_symlink() and path.stat().st_mode & 0o077
    ]


def _open(path: Path, flags: int) -> int:
    """A descriptor of a file that is private before the first byte is written."""
    descriptor = os.open(path, flags, FILE_MODE)
    try:
        # An existing file may have a wider mode.
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
