"""Bytes that are on the disk before a function returns."""

import os
from pathlib import Path


def append_durably(path: Path, data: bytes) -> None:
    """Append to a file and sync it; a new file's folder is synced too.

    Raises:
        OSError: if not all of it could be written and synced; part of it may be there.
    """
    fresh = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if fresh:
        sync_folder(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: aside, synced, renamed, folder synced.

    Raises:
        OSError: if it could not; the file is then as it was before.
    """
    aside = path.with_name(path.name + ".part")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(aside, path)
    except OSError:
        # On a full disk what was written so far would keep it full.
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that the names in it last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
