"""Opacus's own ways of clipping without storing gradients, as references of the private engines.

Ghost clipping takes norms from inner products of activations and output gradients (Li et al. 2022,
https://arxiv.org/abs/2110.05679), fast gradient clipping from one layer's gradients at a time (Lee
and Kifer 2021, https://arxiv.org/abs/2009.03106). Both take a second backward pass for the sum.
"""

from collections.abc import Callable

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch import nn
from torch.nn import functional as F

from fgvc_core.privacy.samplers import register_samplers


def clipped_step(
    model: nn.Module, images_NCHW: torch.Tensor, labels_N: torch.Tensor, *, ghost: bool
) -> Callable[[], None]:
    """A function that puts the sum of clipped gradients (bound 1) into ``model``'s ``.grad``.

    Args:
        model: Taken over: hooks stay on it.
        images_NCHW: float32, normalized.
        labels_N: int64.
        ghost: Ghost clipping where a layer has a rule for it, else fast gradient clipping.
    """
    register_samplers()
    hooked = GradSampleModuleFastGradientClipping(
        model, strict=False, max_grad_norm=1.0, use_ghost_clipping=ghost, loss_reduction="sum"
    )
    hooked.train()

    def step() -> None:
        for parameter in hooked.parameters():
            parameter.grad = None
        hooked.enable_hooks()
        losses_N = F.cross_entropy(hooked(images_NCHW), labels_N, reduction="none")
        losses_N.sum().backward(retain_graph=True)
        for parameter in hooked.parameters():
            parameter.grad = None
        weights_N = hooked.get_clipping_coef()
        hooked.disable_hooks()
        (weights_N * losses_N).sum().backward()

    return step
