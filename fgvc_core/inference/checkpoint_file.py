"""Reading what a run left behind: a checkpoint's tensors and what it says of itself.

Read by everybody who uses a model; written only by the coordinator's run.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fgvc_core.errors import DataError

SERVER = "server/"
"""Names of the tensors that only the run itself needs begin so."""


def read_all(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """Every tensor of a checkpoint, and its metadata.

    Raises:
        DataError: if it is missing or damaged.
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
    """The model's tensors and the metadata of any checkpoint.

    Raises:
        DataError: if it is missing or damaged.
    """
    tensors, metadata = read_all(path)
    return {n: a for n, a in tensors.items() if not n.startswith(SERVER)}, metadata


def find_checkpoint(path: Path) -> Path:
    """The file that a person means: itself, or the best (else last) one of a run's folder.

    Raises:
        DataError: if there is none.
    """
    if path.is_file():
        return path
    for folder in (path / "checkpoints", path):
        for name in ("best", "last"):
            found = folder / f"{name}.safetensors"
            if found.is_file():
                return found
    raise DataError(
        f"There is no checkpoint at '{path}'.",
        remedy="Name a run's folder, or a .safetensors file in its checkpoints folder.",
    )
