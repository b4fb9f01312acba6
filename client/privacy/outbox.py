"""Outbox of a site: stored payloads, so that a repeated request gets the same bytes.

A coordinator can therefore neither spend budget by repeating a request nor average the noise away:
noise is drawn once per request.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fgvc_core.errors import DataError
from fgvc_core.files import FILE_MODE, private_folder, sync_folder, write_durably
from fgvc_core.protocol.messages import Request

SUMS = "sum-"
"""Beginning of the names of what belongs to masked sums."""


@dataclass(frozen=True)
class Payload:
    """Answer to a request, stored for repetitions: plain fields, and tensors by name."""

    fields: dict[str, Any]
    tensors: dict[str, NDArray[Any]]


def request_digest(request: Request) -> str:
    """SHA-256 (hex) that identifies a request, computed without its nonce."""
    values = request.model_dump(mode="json")
    # These may differ between two attempts at the same request.
    for name in ("nonce", "known_head", "notice"):
        values.pop(name)
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


class Outbox:
    """Outbox of one site, one file per request.

    Args:
        home: Home of the site.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "outbox"

    @contextmanager
    def alone(self, request: str) -> Iterator[None]:
        """Lock a request, so that no other thread or process works on it."""
        if not self._folder.exists():
            private_folder(self._folder)
            sync_folder(self._folder.parent)
        with FileLock(self._folder / f"{request}.lock", mode=FILE_MODE):
            yield

    def find(self, request: str) -> Payload | None:
        """Stored payload of a request, or None.

        Raises:
            DataError: if it is damaged.
        """
        path = self._path(request)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                fields = json.loads((file.metadata() or {})["fields"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise DataError(
                f"The stored reply '{path}' cannot be read: {error}.",
                why="It was charged; computing it again would be a second release.",
                remedy="Restore it from a copy, or leave the run.",
            ) from None
        return Payload(fields, tensors)

    def store(self, request: str, payload: Payload) -> None:
        """Store a payload durably.

        Raises:
            OSError: if it could not be stored; then it must not leave.
        """
        # np.ascontiguousarray would turn a scalar into a vector of length 1.
        contiguous = {n: np.require(t, requirements="C") for n, t in payload.tensors.items()}
        write_durably(self._path(request), save(contiguous, {"fields": json.dumps(payload.fields)}))

    def stored(self, prefix: str) -> list[tuple[str, float]]:
        """(request, age in seconds) of every stored payload whose name begins with a prefix."""
        paths = sorted(self._folder.glob(f"{prefix}*.safetensors"))
        return [(path.stem, age) for path in paths if (age := _age(path)) is not None]

    def holds(self, prefix: str) -> bool:
        """Whether there is a file whose name begins with a prefix, finished or not."""
        return any(self._folder.glob(f"{prefix}*"))

    def delete_parts(self, prefix: str, older_s: float) -> None:
        """Delete what crashes have left of unfinished writes, if older than ``older_s`` seconds."""
        for path in self._folder.glob(f"{prefix}*.part"):
            if (_age(path) or 0.0) > older_s:
                path.unlink(missing_ok=True)

    def delete(self, request: str) -> None:
        """Delete a stored payload durably; nothing happens if there is none."""
        self._path(request).unlink(missing_ok=True)
        sync_folder(self._folder)

    def _path(self, request: str) -> Path:
        return self._folder / f"{request}.safetensors"


def _age(path: Path) -> float | None:
    """Seconds since a file was written; None if another process has renamed or deleted it."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
