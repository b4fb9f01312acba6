"""The validation kit: one signed file with a model that an outside site can check.

A kit is a safetensors file with the trained tensors. Its header contains a signed body that
describes them and lists their digests. A kit contains no code and is never unpickled. Every name,
shape and length is compared with the recipe's model before memory is allocated.
"""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fgvc_core import __version__
from fgvc_core.errors import ConfigurationError, DataError, PeerError
from fgvc_core.experiment import make_learner
from fgvc_core.files import replacing
from fgvc_core.inference.calibration import Calibration, confidence_of
from fgvc_core.inference.confidence import COLDEST, HOTTEST, Confidence
from fgvc_core.inference.trained import TrainedModel, refuse_partial
from fgvc_core.models.weight_names import by_digest, check_digest
from fgvc_core.protocol.keys import PrivateKey, PublicKey, public_text, read_public
from fgvc_core.protocol.messages import MAX_BODY_BYTES, KitBody, KitPrivacy, Sealed, seal, unseal
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.learner import Learner
from fgvc_core.wire.arrays import digest_all, pack_all

MAX_HEADER_BYTES = 2 * MAX_BODY_BYTES
"""Longest accepted header, in bytes: an escaped body, and the tensors' offsets."""


@dataclass(frozen=True)
class Kit:
    """An opened kit: its signature is verified and its model is built.

    Attributes:
        body: The signed body.
        digest: SHA-256 (hex) of the signed body; identifies the kit.
        trained: The model, in evaluation mode.
        confidence: The rule of confidence that its issuer uses.
    """

    body: KitBody
    digest: str
    trained: TrainedModel
    confidence: Confidence


def write_kit(
    trained: TrainedModel,
    path: Path,
    key: PrivateKey,
    privacy: KitPrivacy,
    calibration: Calibration | None,
) -> KitBody:
    """Write a kit of a trained model.

    Args:
        trained: The model.
        path: The kit's file; replaced if it exists.
        key: Signs the kit.
        privacy: Privacy terms offered to sites that require differential privacy.
        calibration: The model's calibration, if it has one.

    Returns:
        The kit's body.

    Raises:
        ConfigurationError: if the file cannot be written, or some tensors stayed at the sites.
    """
    refuse_partial(trained.recipe)
    # Do not disclose paths of this machine.
    recipe = trained.recipe.announced
    model = recipe.model.model_copy(update={"weights": by_digest(recipe.model.weights)})
    recipe = recipe.model_copy(update={"model": model})
    tensors = trained.learner.tensors()
    rule = confidence_of(calibration)
    body = KitBody(
        kit=f"kit-{secrets.token_hex(8)}",
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        name=trained.recipe.name,
        recipe=recipe.to_toml(),
        class_names=trained.class_names,
        temperature=rule.temperature,
        score=rule.score,
        threshold=rule.threshold,
        frozen=trained.learner.extractor.hex(),
        privacy=privacy,
        issuer=public_text(key.public_key()),
        tensors=digest_all(pack_all(tensors)),
    )
    sealed = seal(key, body)
    metadata = {"body": sealed.text, "signature": sealed.signature.hex()}
    content = save({n: np.require(a, requirements="C") for n, a in tensors.items()}, metadata)
    try:
        with replacing(path) as aside:
            aside.write_bytes(content)
    except OSError as error:
        raise ConfigurationError(
            f"--out '{path}' cannot be written: {error.strerror}.",
            remedy="Name a file in a folder that exists and that you may write to.",
        ) from None
    return body


def read_body(path: Path) -> tuple[KitBody, Sealed]:
    """The body of a kit, with its issuer's signature verified; reads no tensor.

    Raises:
        ConfigurationError: if there is no file.
        DataError: if it is not a kit.
        PeerError: if the signature is not the issuer's.
    """
    with _opened(path) as file:
        metadata = dict(file.metadata() or {})
    try:
        if set(metadata) != {"body", "signature"}:
            raise ValueError("it has no signed body")
        sealed = Sealed(metadata["body"], bytes.fromhex(metadata["signature"]))
        issuer = KitBody.parse(sealed.text)
        assert isinstance(issuer, KitBody)
        key = read_public(issuer.issuer)
    except (ValueError, PeerError) as error:
        raise _no_kit(path, str(error)) from None
    # The tensors' digests are compared when the tensors are read.
    return unseal(KitBody, sealed, key, issuer.tensors), sealed


def open_kit(
    path: Path, device: str = "cpu", weights: str | None = None, issuer: PublicKey | None = None
) -> Kit:
    """Open a kit and build its model.

    Args:
        path: The kit.
        device: Device of the model.
        weights: Local file with the pretrained weights of the frozen part.
        issuer: The key that must have signed the kit; None: the key that the kit names.

    Raises:
        ConfigurationError: if there is no kit.
        DataError: if it is damaged, or its tensors do not fit its model.
        PeerError: if another key has signed it, or a tensor is not the signed one.
        ConfigurationError: if its model cannot be built here, or its frozen part differs.
    """
    body, sealed = read_body(path)
    if issuer is not None and public_text(issuer) != body.issuer:
        raise PeerError(f"The kit '{path}' was signed by another key than the expected one.")
    rule = _rule(path, body)
    recipe = parse_recipe(body.recipe, where="the kit's recipe")
    wanted = recipe.model.weights if weights is None else weights
    if weights is None and wanted not in ("none", "package"):
        raise ConfigurationError(
            f"The kit's model starts from weights that are not in it (model.weights = '{wanted}').",
            why="A kit never makes this machine fetch or open anything else.",
            remedy="Give the same weights as a local file with --weights FILE.",
        )
    if weights is not None:
        check_digest(recipe.model.weights, Path(weights))
    model = recipe.model.model_copy(update={"weights": wanted})
    recipe = recipe.model_copy(update={"model": model})
    learner = make_learner(recipe, len(body.class_names), device, keeps_maps=False)
    if learner.extractor.hex() != body.frozen:
        raise ConfigurationError(
            "The frozen part of the kit's model is another here than where it was made.",
            why="The trained part would be judged on features that it has never seen.",
            remedy="Install the same fieldmark[weights], or name the same file with --weights.",
        )
    tensors = _read_tensors(path, learner)
    if digest_all(pack_all(tensors)) != body.tensors:
        raise PeerError(f"The tensors of '{path}' are not the ones that were signed.")
    learner.load(tensors)
    learner.model.eval()
    trained = TrainedModel(path, recipe, body.class_names, learner, {})
    return Kit(body, sealed.digest, trained, rule)


def _rule(path: Path, body: KitBody) -> Confidence:
    if body.temperature is not None and not COLDEST <= body.temperature <= HOTTEST:
        raise _no_kit(
            path,
            f"its temperature is {body.temperature:.3g}, and {COLDEST:g} to {HOTTEST:g} is allowed",
        )
    return Confidence(temperature=body.temperature, score=body.score, threshold=body.threshold)


def _read_tensors(path: Path, learner: Learner) -> dict[str, NDArray[np.float32]]:
    expected = {n: tuple(learner.model.state_dict()[n].shape) for n in learner.names}
    with _opened(path) as file:
        if set(file.keys()) != set(expected):
            odd = sorted(set(file.keys()) ^ set(expected))
            raise _no_kit(path, f"its tensors are not its model's: {odd[:3]} differ")
        for name, shape in expected.items():
            found = file.get_slice(name)
            if found.get_dtype() != "F32" or tuple(found.get_shape()) != shape:
                raise _no_kit(path, f"tensor '{name}' is not float32 {list(shape)}")
        return {name: file.get_tensor(name) for name in expected}


def _opened(path: Path) -> safe_open:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise _no_kit(path, f"its header says that it has {length} bytes")
        return safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise ConfigurationError(
            f"There is no kit at '{path}'.", remedy="Name the file that 'export kit' has written."
        ) from None
    except (OSError, SafetensorError) as error:
        raise _no_kit(path, str(error)) from None


def _no_kit(path: Path, what: str) -> DataError:
    return DataError(
        f"'{path}' is no validation kit: {what}.",
        why="Nothing of it was used.",
        remedy="Ask for it again; it is made with: fieldmark export kit CHECKPOINT --out FILE",
    )
