"""Reads checkpoints: the tensors and metadata that a run's coordinator has written."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fgvc_core.errors import DataError
from fgvc_core.run_paths import no_run

SERVER = "server/"
"""Prefix of the tensors that only the run itself needs."""


def read_all(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """All tensors of a checkpoint, and its metadata.

    Raises:
        DataError: if the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"The checkpoint '{path}' cannot be read: {error}.",
            remedy="Name a .safetensors file in a run's checkpoints folder.",
        ) from None
    return tensors, metadata


def read_checkpoint(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """The model's tensors and the metadata of a checkpoint.

    Raises:
        DataError: if the file is missing or damaged.
    """
    tensors, metadata = read_all(path)
    return {n: a for n, a in tensors.items() if not n.startswith(SERVER)}, metadata


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at a path: the file itself, or the best (else the last) one of a run's folder.

    Raises:
        ConfigurationError: if there is none.
    """
    if path.is_file():
        return path
    for folder in (path / "checkpoints", path):
        for name in ("best", "last"):
            found = folder / f"{name}.safetensors"
            if found.is_file():
                return found
    raise no_run(path, ["checkpoints/best.safetensors", "checkpoints/last.safetensors"],
                 "checkpoint")  # fmt: skip
