"""What becomes of a backbone's BatchNorm in a federation.

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

from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from fgvc_core.errors import ConfigurationError

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
