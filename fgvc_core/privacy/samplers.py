"""Per-sample gradients of layers that Opacus has no sampler for.

Opacus looks a sampler up by exact type and falls back on a vectorised gradient of the whole
layer, which is right, and slow and large for a convolution. timm's norm layers differ from
PyTorch's in nothing that matters here; its weight-standardised convolutions do: the gradient
in the standardised weight is an ordinary convolution's, and is then taken back through the
standardisation, which is the same for every sample.
"""

import torch
from opacus.grad_sample import GradSampleModule, register_grad_sampler
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
from timm.layers.norm import GroupNorm, GroupNorm1, LayerNorm
from timm.layers.std_conv import ScaledStdConv2d, StdConv2d
from torch import nn
from torch.nn import functional as F

GradSamples = dict[torch.Tensor, torch.Tensor]


def register_samplers() -> None:
    """Make Opacus use them; again and again does no harm."""
    register_grad_sampler([StdConv2d, ScaledStdConv2d])(standardised_conv_grads)
    samplers = GradSampleModule.GRAD_SAMPLERS
    register_grad_sampler([GroupNorm, GroupNorm1])(samplers[nn.GroupNorm])
    register_grad_sampler(LayerNorm)(samplers[nn.LayerNorm])


def standardised_conv_grads(
    layer: StdConv2d | ScaledStdConv2d, activations: list[torch.Tensor], backprops: torch.Tensor
) -> GradSamples:
    """Per-sample gradients of a weight-standardised convolution.

    Args:
        layer: Its weight is (O, I / groups, H, W).
        activations: What went in, (N, I, ., .), as the only entry.
        backprops: The loss's gradient in what came out, (N, O, ., .).

    Returns:
        (N, *shape) for each of its parameters that trains.
    """
    if isinstance(layer.padding, str):
        return ft_compute_per_sample_gradient(layer, activations, backprops)
    count, out = len(backprops), layer.out_channels
    columns_NGPQ = F.unfold(
        activations[0], layer.kernel_size, layer.dilation, layer.padding, layer.stride
    ).unflatten(1, (layer.groups, -1))
    pushes_NGOQ = backprops.reshape(count, layer.groups, out // layer.groups, -1)
    # In the weight as the convolution sees it: one row an output channel.
    grads_NOP = (pushes_NGOQ @ columns_NGPQ.transpose(2, 3)).flatten(1, 2)

    weight_OP = layer.weight.detach().flatten(1)
    variance_O1, mean_O1 = torch.var_mean(weight_OP, dim=1, correction=0, keepdim=True)
    deviation_O1 = (variance_O1 + layer.eps).sqrt()
    standard_OP = (weight_OP - mean_O1) / deviation_O1
    found: GradSamples = {}
    gain_O1 = torch.ones_like(mean_O1)
    if isinstance(layer, ScaledStdConv2d):
        gain_O1 = layer.gain.detach().flatten(1) * layer.scale
        if layer.gain.requires_grad:
            along_NO = (grads_NOP * standard_OP).sum(dim=2) * layer.scale
            found[layer.gain] = along_NO.reshape(count, *layer.gain.shape)
    if layer.weight.requires_grad:
        # Nothing changes where a row is shifted or stretched.
        along_NO1 = (grads_NOP * standard_OP).mean(dim=2, keepdim=True)
        level_NO1 = grads_NOP.mean(dim=2, keepdim=True)
        free_NOP = grads_NOP - level_NO1 - standard_OP * along_NO1
        found[layer.weight] = (free_NOP * (gain_O1 / deviation_O1)).reshape(
            count, *layer.weight.shape
        )
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = pushes_NGOQ.sum(dim=3).flatten(1)
    return found
