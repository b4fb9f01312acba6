"""What of a model trains, what travels, and what becomes of its BatchNorm.

What of a model trains, what travels, and what is frozen.

What becomes of a backbone's BatchNorm in a federation.

BatchNorm trains on each batch's own statistics, which at a site of other birds are other
statistics; averaging them does not give those of the whole. The policies, cheapest first:

* ``batch``: as the backbone has it; its running statistics travel and are averaged.
* ``frozen``: the pre-trained statistics, for good; its scales and shifts still train. Couples no
  examples.
* ``fixbn``: as ``batch`` at first, ``frozen`` from a share of the rounds on (Zhong et al. 2023,
  "Making Batch Normalization Great in Federated Deep Learning", section 5,
  https://arxiv.org/abs/2303.06530).
* ``local``: all of it stays at each site and follows that site (Li et al. 2021, "FedBN", section 3,
  https://arxiv.org/abs/2102.07623); the coordinator then has no whole model to score.
* ``group``: GroupNorm in its place, with its scales and shifts (Wu and He 2018,
  https://arxiv.org/abs/1803.08494; in federations Hsieh et al. 2020, section 5,
  https://arxiv.org/abs/1910.00189).
* ``standardised``: that, and standardised convolution weights (Qiao et al. 2019,
  https://arxiv.org/abs/1903.10520).

Counters of batches never travel. A warning: ``group`` and ``standardised`` change what pre-trained
weights compute, which has to be trained away again; ``frozen`` with ``weights = "none"``
normalises nothing at all.
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
"""At most so many groups, as in the paper; fewer where they do not divide the channels."""


class GroupNormAct(nn.GroupNorm):
    """GroupNorm with what timm's BatchNorm does after it: dropping, then the activation.

    Args:
        norm: The BatchNorm whose place it takes, with its scales and shifts.
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
        """(N, C, H, W) to the same; N may be 0."""
        return self.act(self.drop(super().forward(input)))


class Standardised(nn.Module):
    """A convolution's weights with mean 0 and variance 1 over each output channel's inputs."""

    def forward(self, weight_OIHW: torch.Tensor) -> torch.Tensor:
        """Any weight to the same shape."""
        flat_OD = weight_OIHW.flatten(1)
        spread_O1 = flat_OD.std(dim=1, correction=0, keepdim=True)
        return ((flat_OD - flat_OD.mean(dim=1, keepdim=True)) / (spread_O1 + 1e-5)).view_as(
            weight_OIHW
        )


def batch_norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """A model's BatchNorm layers, by name."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            yield name, module


def apply_policy(backbone: nn.Module, policy: Policy, name: str) -> None:
    """Change a backbone as a policy says, in place, after its weights are loaded.

    Args:
        backbone: Anything with BatchNorm layers.
        policy: ``batch`` changes nothing.
        name: The backbone's, for messages.

    Raises:
        ConfigurationError: if there is no BatchNorm that a policy could be for.
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
            # One input a channel (depthwise 1x1) would have nothing to standardise.
            if convolution.weight[0].numel() > 1:
                parametrize.register_parametrization(convolution, "weight", Standardised())


def norm_names(model: nn.Module) -> tuple[str, ...]:
    """Names of everything that BatchNorm layers hold, counters left out."""
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

# Running means and variances travel with the layer that they belong to; counters of
# batches never do.
_STATISTICS = ("running_mean", "running_var")


def select_trainable(model: "FineGrainedClassifier", spec: str) -> None:
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
    """Whether nothing before the head trains, so that features can be kept."""
    parts = (model.before, model.backbone, model.attention, model.pooling)
    before = chain.from_iterable(part.parameters() for part in parts)
    return not any(p.requires_grad for p in before)


def frozen_digest(model: "FineGrainedClassifier") -> bytes:
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
    model: "FineGrainedClassifier", names: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """Copies of named tensors, float32, on the CPU."""
    state = model.state_dict()
    return {name: state[name].detach().cpu().float().numpy().copy() for name in names}


def set_tensors(model: "FineGrainedClassifier", arrays: Mapping[str, NDArray[np.float32]]) -> None:
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
        # Positions and class tokens belong to no part; they enter behind the first.
        yield from root.parameters(recurse=False)
    for name in names[first:]:
        yield from root.get_submodule(name).parameters()
    yield from model.attention.parameters()
    yield from model.pooling.parameters()
