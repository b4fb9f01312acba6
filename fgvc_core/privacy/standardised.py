"""Weight-standardized convolutions whose standardization is computed once per step.

These layers standardize their weight in every forward pass (Qiao et al. 2019,
https://arxiv.org/abs/1903.10520; Brock et al. 2021, https://arxiv.org/abs/2101.08692). A loop over
single pictures needs this only once per step, which saves a seventh of its time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from timm.layers.std_conv import ScaledStdConv2d, StdConv2d
from torch import nn
from torch.nn import functional as F

Layer = StdConv2d | ScaledStdConv2d

STANDARDISED = (StdConv2d, ScaledStdConv2d)
"""Compared by exact type: timm's subclasses pad depending on the picture's size."""


@contextmanager
def fixed_weights(model: nn.Module) -> Iterator[None]:
    """Context in which a model's standardized weights are computed once, not in each forward pass.

    Gradients of losses computed within it still reach the parameters, if each is computed with
    ``retain_graph``. The parameters must not change in between.

    Args:
        model: The model; restored at the end.
    """
    layers = [m for m in model.modules() if isinstance(m, STANDARDISED) and _is_plain(m)]
    with torch.enable_grad():
        weights = [_standardised(layer) for layer in layers]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            vars(layer)["forward"] = partial(_convolve, layer, weight)
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


class Standardisation:
    """The Jacobian of a weight's standardization, which is the same for all gradients.

    Per output channel, shifts and scalings of the weight are projected out: standardization
    removes them.

    Args:
        weight_OP: The weight.
        gain_O1: Factor of the standardized weight.
        eps: Added to the weight's variance.
    """

    def __init__(self, weight_OP: torch.Tensor, gain_O1: torch.Tensor | float, eps: float) -> None:
        variance_O1, mean_O1 = torch.var_mean(weight_OP, dim=1, correction=0, keepdim=True)
        deviation_O1 = (variance_O1 + eps).sqrt()
        self._standard_OP = (weight_OP - mean_O1) / deviation_O1
        self._factor_O1 = gain_O1 / deviation_O1

    def pull(self, grads_NOP: torch.Tensor) -> torch.Tensor:
        """Change gradients of the standardized weight to those of the weight, in place.

        Args:
            grads_NOP: (N, O, P).

        Returns:
            The gradients of the gain, (N, O, 1).
        """
        along_NO1 = torch.linalg.vecdot(grads_NOP, self._standard_OP)[:, :, None]
        grads_NOP.sub_(grads_NOP.mean(dim=2, keepdim=True))
        grads_NOP.addcmul_(self._standard_OP, along_NO1, value=-1 / grads_NOP.shape[2])
        grads_NOP.mul_(self._factor_O1)
        return along_NO1


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) in STANDARDISED and "forward" not in vars(layer)


def _standardised(layer: Layer) -> torch.Tensor:
    """The standardized weight, as the layer's own forward computes it."""
    gain = None
    if isinstance(layer, ScaledStdConv2d):
        gain = (layer.gain * float(layer.scale)).view(-1)
    return F.batch_norm(
        layer.weight.reshape(1, layer.out_channels, -1),
        None,
        None,
        weight=gain,
        training=True,
        momentum=0.0,
        eps=layer.eps,
    ).reshape_as(layer.weight)


def _convolve(layer: Layer, weight: torch.Tensor, inputs_NCHW: torch.Tensor) -> torch.Tensor:
    return F.conv2d(
        inputs_NCHW,
        weight,
        layer.bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
