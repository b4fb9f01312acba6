"""What of a model trains, what travels, and what is frozen."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.evo_norm import EvoNorm2dS0
from timm.layers.norm import RmsNorm, RmsNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fgvc_core.errors import ConfigurationError, PeerError, nearest
from fgvc_core.models.backbones import TimmBackbone
from fgvc_core.models.classifier import FineGrainedClassifier

NORMS = (
    _BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    RmsNorm,
    RmsNorm2d,
    EvoNorm2dS0,
)

# Running means and variances travel with the layer that they belong to; counters of
# batches never do.
_STATISTICS = ("running_mean", "running_var")


def select_trainable(model: FineGrainedClassifier, spec: str) -> None:
    """Freeze all but what a recipe names.

    Args:
        model: Changed in place.
        spec: ``all``, ``head``, ``norm`` (norm layers and head), or a stage's name (it and
            everything after it). What the backbone's map does not depend on stays frozen.

    Raises:
        ConfigurationError: for an unknown stage, or ``norm`` where there is no norm layer.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(spec == "all")
    for parameter in chain(model.head.parameters(), _chosen(model, spec)):
        parameter.requires_grad_(True)
    for name in model.backbone.idle:
        model.backbone.get_parameter(name).requires_grad_(False)


def _chosen(model: FineGrainedClassifier, spec: str) -> Iterator[nn.Parameter]:
    if spec in ("all", "head"):
        return
    if spec != "norm":
        yield from _from_stage(model, spec)
        return
    norms = [m for m in model.modules() if isinstance(m, NORMS)]
    if not norms:
        raise ConfigurationError(
            "model.train = 'norm', but the backbone has no norm layer.",
            remedy="Set model.train to all, head or a stage.",
        )
    for module in norms:
        yield from module.parameters()


def travelling_names(model: FineGrainedClassifier) -> tuple[str, ...]:
    """Sorted names of the tensors that train and travel."""
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    for prefix, module in model.named_modules():
        if model.norm == "frozen":
            break
        if isinstance(module, _BatchNorm) and any(
            p.requires_grad for p in module.parameters(recurse=False)
        ):
            names |= {f"{prefix}.{s}" for s in _STATISTICS if getattr(module, s) is not None}
    return tuple(sorted(names))


def is_frozen_backbone(model: FineGrainedClassifier) -> bool:
    """Whether nothing before the head trains, so that features can be kept."""
    parts = (model.before, model.backbone, model.attention, model.pooling)
    before = chain.from_iterable(part.parameters() for part in parts)
    return not any(p.requires_grad for p in before)


def frozen_digest(model: FineGrainedClassifier) -> bytes:
    """SHA-256 (32 bytes) of everything that makes a frozen model's features."""
    digest = hashlib.sha256(
        f"{model.input} {model.pooling.kind} {model.scaling.kind} {model.mirrored}".encode()
    )
    if model.closer or model.middle:
        digest.update(f"closer {model.closer} middle {model.middle}".encode())
    if getattr(model.backbone, "selection", None) is not None:
        digest.update(b"token selection")
    parts = [model.backbone, model.attention, model.pooling]
    if not isinstance(model.before, nn.Identity):
        parts.append(model.before)
    for part in parts:
        digest.update(str(part).encode())
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()


def get_tensors(
    model: FineGrainedClassifier, names: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """Copies of named tensors, float32, on the CPU."""
    state = model.state_dict()
    return {name: state[name].detach().cpu().float().numpy().copy() for name in names}


def set_tensors(model: FineGrainedClassifier, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Take over exactly the travelling tensors.

    Raises:
        PeerError: if a name or a shape is not the model's; nothing was changed then.
    """
    expected = set(travelling_names(model))
    if set(arrays) != expected:
        odd = sorted(set(arrays) ^ expected)
        raise PeerError(f"The tensors are not the model's: {odd[:3]} differ.")
    state = model.state_dict()
    for name, array in arrays.items():
        if tuple(array.shape) != tuple(state[name].shape):
            raise PeerError(
                f"Tensor '{name}' is {list(array.shape)}, expected {list(state[name].shape)}."
            )
    with torch.no_grad():
        for name, array in arrays.items():
            # The array may be a read-only view of a message's bytes: copy, never share.
            state[name].copy_(torch.from_numpy(np.array(array)))


def _from_stage(model: FineGrainedClassifier, stage: str) -> Iterator[nn.Parameter]:
    names = model.stage_names
    if stage not in names:
        choices = list(dict.fromkeys(["all", "head", "norm", *names]))
        raise ConfigurationError(
            f"model.train = '{stage}' names no stage of this backbone.",
            remedy=f"{nearest(stage, choices)} Choices: {', '.join(choices)}.".strip(),
        )
    root = model.backbone.model if isinstance(model.backbone, TimmBackbone) else model.backbone
    first = names.index(stage)
    if first == 0:
        # Positions and class tokens belong to no part; they enter behind the first.
        yield from root.parameters(recurse=False)
    for name in names[first:]:
        yield from root.get_submodule(name).parameters()
    yield from model.attention.parameters()
    yield from model.pooling.parameters()
