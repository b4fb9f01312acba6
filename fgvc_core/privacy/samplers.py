"""Per-sample gradients for Opacus of layers that it does not support efficiently.

Opacus looks up a sampler by exact type and otherwise falls back on a vectorized gradient of the
whole layer, which is correct but slow and large for a convolution. timm's norm layers can use the
samplers of PyTorch's; its weight-standardized convolutions need their own.
"""

import torch
from opacus.grad_sample import GradSampleModule, register_grad_sampler
from opacus.grad_sample.conv import compute_conv_grad_sample
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
from timm.layers.norm import GroupNorm, GroupNorm1, LayerNorm
from timm.layers.std_conv import ScaledStdConv2d
from torch import nn
from torch.nn import functional as F

from fgvc_core.privacy.standardised import STANDARDISED, Layer, Standardisation

GradSamples = dict[torch.Tensor, torch.Tensor]


def register_samplers() -> None:
    """Register the samplers with Opacus; idempotent."""
    register_grad_sampler(nn.Conv2d)(conv_grads)
    register_grad_sampler(list(STANDARDISED))(standardised_conv_grads)
    samplers = GradSampleModule.GRAD_SAMPLERS
    register_grad_sampler([GroupNorm, GroupNorm1])(samplers[nn.GroupNorm])
    register_grad_sampler(LayerNorm)(samplers[nn.LayerNorm])


def conv_grads(
    layer: nn.Conv2d, activations: list[torch.Tensor], backprops: torch.Tensor
) -> GradSamples:
    """Opacus's own sampler, on contiguous tensors.

    Opacus assumes contiguous strides: with channels last in memory, as in our models, it computes a
    wrong gradient (relative error about 1, Opacus 1.6.0).
    """
    contiguous = [activation.contiguous() for activation in activations]
    found: GradSamples = compute_conv_grad_sample(layer, contiguous, backprops.contiguous())
    return found


def standardised_conv_grads(
    layer: Layer, activations: list[torch.Tensor], backprops: torch.Tensor
) -> GradSamples:
    """Per-sample gradients of a weight-standardized convolution.

    Args:
        layer: Its weight is (O, I / groups, H, W).
        activations: Its input (N, I, ., .), as the only entry.
        backprops: The loss's gradient in its output, (N, O, ., .).

    Returns:
        (N, *shape) for each of its trainable parameters.
    """
    if isinstance(layer.padding, str):
        return ft_compute_per_sample_gradient(layer, activations, backprops)
    count, out = len(backprops), layer.out_channels
    columns_NGPQ = F.unfold(
        activations[0], layer.kernel_size, layer.dilation, layer.padding, layer.stride
    ).unflatten(1, (layer.groups, -1))
    pushes_NGOQ = backprops.reshape(count, layer.groups, out // layer.groups, -1)
    grads_NOP = (pushes_NGOQ @ columns_NGPQ.transpose(2, 3)).flatten(1, 2)
    found: GradSamples = {}
    gain_O1: torch.Tensor | float = 1.0
    if isinstance(layer, ScaledStdConv2d):
        gain_O1 = layer.gain.detach().flatten(1) * layer.scale
    weight_OP = layer.weight.detach().flatten(1)
    along_NO1 = Standardisation(weight_OP, gain_O1, layer.eps).pull(grads_NOP)
    if isinstance(layer, ScaledStdConv2d) and layer.gain.requires_grad:
        found[layer.gain] = (along_NO1 * layer.scale).reshape(count, *layer.gain.shape)
    if layer.weight.requires_grad:
        found[layer.weight] = grads_NOP.reshape(count, *layer.weight.shape)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = pushes_NGOQ.sum(dim=3).flatten(1)
    return found
