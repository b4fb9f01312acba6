"""Which tensors of a model train and travel, and how BatchNorm is handled in a federation.

BatchNorm trains on each batch's statistics, which differ between sites; averaging them does not
give those of the whole. The policies, cheapest first:

* ``batch``: unchanged; running statistics travel and are averaged.
* ``frozen``: pre-trained statistics throughout; scales and shifts still train. Couples no
  examples.
* ``fixbn``: ``batch`` at first, ``frozen`` after a share of the rounds (Zhong et al. 2023,
  "Making Batch Normalization Great in Federated Deep Learning", section 5,
  https://arxiv.org/abs/2303.06530).
* ``local``: BatchNorm stays at each site (Li et al. 2021, "FedBN", section 3,
  https://arxiv.org/abs/2102.07623); the coordinator then has no complete model to score.
* ``group``: replaced by GroupNorm with the same scales and shifts (Wu and He 2018,
  https://arxiv.org/abs/1803.08494; in federations Hsieh et al. 2020, section 5,
  https://arxiv.org/abs/1910.00189).
* ``standardised``: ``group`` with standardized convolution weights (Qiao et al. 2019,
  https://arxiv.org/abs/1903.10520).

Batch counters never travel. ``group`` and ``standardised`` change what pre-trained weights compute,
which training must undo; ``frozen`` with ``weights = "none"`` does not normalize at all.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.evo_norm import EvoNorm2dS0
from timm.layers.norm import RmsNorm, RmsNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from fgvc_core.errors import ConfigurationError, PeerError, nearest
from fgvc_core.models.backbones import TimmBackbone

if TYPE_CHECKING:
    from fgvc_core.models.classifier import FineGrainedClassifier

Policy = Literal["batch", "frozen", "fixbn", "local", "group", "standardised"]

GROUPS = 32
"""Most groups, as in the paper; fewer if this does not divide the channels."""


class GroupNormAct(nn.GroupNorm):
    """GroupNorm followed by the dropout and activation of timm's BatchNorm.

    Args:
        norm: The BatchNorm to replace; its scales and shifts are reused.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        channels = norm.num_features
        groups = next(g for g in range(min(GROUPS, channels), 0, -1) if channels % g == 0)
        super().__init__(groups, channels, eps=norm.eps, affine=norm.affine)
        if norm.affine:
            with torch.no_grad():
                self.weight.copy_(norm.weight)
                self.bias.copy_(norm.bias)
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(input)))


class Standardised(nn.Module):
    """Standardizes convolution weights: mean 0 and variance 1 over each output channel's inputs."""

    def forward(self, weight_OIHW: torch.Tensor) -> torch.Tensor:
        flat_OD = weight_OIHW.flatten(1)
        spread_O1 = flat_OD.std(dim=1, correction=0, keepdim=True)
        return ((flat_OD - flat_OD.mean(dim=1, keepdim=True)) / (spread_O1 + 1e-5)).view_as(
            weight_OIHW
        )


def batch_norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """BatchNorm layers of a model, with names."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            yield name, module


def apply_policy(backbone: nn.Module, policy: Policy, name: str) -> None:
    """Apply a BatchNorm policy to a backbone in place, after its weights are loaded.

    Args:
        backbone: Any model with BatchNorm layers.
        policy: ``batch`` changes nothing.
        name: The backbone's name, for messages.

    Raises:
        ConfigurationError: if there is no BatchNorm to apply the policy to.
    """
    if policy == "batch":
        return
    norms = list(batch_norms(backbone))
    if not norms:
        raise ConfigurationError(
            f"model.norm = '{policy}', but '{name}' has no BatchNorm.",
            why="The policy is about BatchNorm, and would do nothing.",
            remedy="Leave model.norm out.",
        )
    if policy not in ("group", "standardised"):
        return
    for path, norm in norms:
        parent, _, own = path.rpartition(".")
        owner = backbone.get_submodule(parent)
        setattr(owner, own, GroupNormAct(norm))
    if policy == "standardised":
        convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
        for convolution in convolutions:
            # With one input per channel (depthwise 1x1), standardizing would give zero.
            if convolution.weight[0].numel() > 1:
                parametrize.register_parametrization(convolution, "weight", Standardised())


def norm_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the tensors in BatchNorm layers, without counters."""
    return tuple(
        f"{prefix}.{name}"
        for prefix, norm in batch_norms(model)
        for name in norm.state_dict()
        if name != "num_batches_tracked"
    )


NORMS = (
    _BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    RmsNorm,
    RmsNorm2d,
    EvoNorm2dS0,
)

_TRAINED = "_trained_parameters"
"""Where a model keeps what :func:`trained_parameters` found."""

# Running means and variances travel with their layer; batch counters never do.
_STATISTICS = ("running_mean", "running_var")


def select_trainable(model: "FineGrainedClassifier", spec: str) -> None:
    """Freeze all parameters except those that a recipe selects.

    Args:
        model: Changed in place.
        spec: ``all``, ``head``, ``norm`` (norm layers and head), or a stage's name (it and
            everything after it). Idle parameters of the backbone stay frozen.

    Raises:
        ConfigurationError: for an unknown stage, or ``norm`` if there is no norm layer.
    """
    vars(model).pop(_TRAINED, None)
    for parameter in model.parameters():
        parameter.requires_grad_(spec == "all")
    for parameter in chain(model.head.parameters(), _chosen(model, spec)):
        parameter.requires_grad_(True)
    for name in model.backbone.idle:
        model.backbone.get_parameter(name).requires_grad_(False)


def _chosen(model: "FineGrainedClassifier", spec: str) -> Iterator[nn.Parameter]:
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


def trained_parameters(model: "FineGrainedClassifier") -> dict[str, nn.Parameter]:
    """The parameters that train, by name, in the model's order.

    They are looked for once: to walk through a frozen backbone takes as long as a step of a head.
    """
    own = vars(model)
    if _TRAINED not in own:
        own[_TRAINED] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found: dict[str, nn.Parameter] = own[_TRAINED]
    return found


def travelling_names(model: "FineGrainedClassifier") -> tuple[str, ...]:
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


def is_frozen_backbone(model: "FineGrainedClassifier") -> bool:
    """Whether only the head trains, so that features can be cached."""
    parts = (model.before, model.backbone, model.attention, model.pooling)
    before = chain.from_iterable(part.parameters() for part in parts)
    return not any(p.requires_grad for p in before)


def frozen_digest(model: "FineGrainedClassifier") -> bytes:
    """SHA-256 (32 bytes) of everything that a frozen model's features depend on."""
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


def prefix_digest(model: "FineGrainedClassifier", stage: str) -> bytes:
    """SHA-256 (32 bytes) of everything that the maps in front of a stage depend on.

    All tensors count that never change in a run. Batch counters of trained layers do, and nothing
    reads them.
    """
    moving = set(travelling_names(model))
    digest = hashlib.sha256(f"maps in front of {stage} {model.input}".encode())
    for part in ("before", "backbone"):
        module = model.get_submodule(part)
        digest.update(str(module).encode())
        for name, tensor in sorted(module.state_dict().items()):
            if f"{part}.{name}" in moving or name.endswith("num_batches_tracked"):
                continue
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()


def get_tensors(
    model: "FineGrainedClassifier", names: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """Copies of the named tensors, float32, on the CPU."""
    return {name: _tensor(model, name).detach().cpu().float().numpy().copy() for name in names}


def set_tensors(
    model: "FineGrainedClassifier",
    arrays: Mapping[str, NDArray[np.float32]],
    names: Sequence[str] | None = None,
) -> None:
    """Set the traveling tensors, which must be complete.

    Args:
        model: Changed in place.
        arrays: The tensors, by name.
        names: :func:`travelling_names` of the model, if known already.

    Raises:
        PeerError: if a name or a shape does not match; the model is then unchanged.
    """
    expected = set(travelling_names(model) if names is None else names)
    if set(arrays) != expected:
        odd = sorted(set(arrays) ^ expected)
        raise PeerError(f"The tensors are not the model's: {odd[:3]} differ.")
    state = {name: _tensor(model, name) for name in arrays}
    for name, array in arrays.items():
        if tuple(array.shape) != tuple(state[name].shape):
            raise PeerError(
                f"Tensor '{name}' is {list(array.shape)}, expected {list(state[name].shape)}."
            )
    with torch.no_grad():
        for name, array in arrays.items():
            # Copy, because the array may be a read-only view of a message's bytes.
            state[name].copy_(torch.from_numpy(np.array(array)))


def _tensor(model: "FineGrainedClassifier", name: str) -> torch.Tensor:
    # Not from the state_dict: where a head trains, that of its backbone takes as long as a step.
    owner, _, own = name.rpartition(".")
    found: torch.Tensor = getattr(model.get_submodule(owner), own)
    return found


def _from_stage(model: "FineGrainedClassifier", stage: str) -> Iterator[nn.Parameter]:
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
        # Position embeddings and class tokens are in no part; they enter after the first.
        yield from root.parameters(recurse=False)
    for name in names[first:]:
        yield from root.get_submodule(name).parameters()
    yield from model.attention.parameters()
    yield from model.pooling.parameters()
