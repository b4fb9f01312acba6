"""SCAFFOLD's correction of a site's drift (Karimireddy et al. 2020, algorithm 1).

Each gradient is moved by (shared - own): away from where this site's data pull, towards
where everybody's do. The site's next variate is the mean of its own gradients along the
way, which for plain SGD is the paper's option II and holds for any optimiser.
https://arxiv.org/abs/1910.06378
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fgvc_core.models.classifier import FineGrainedClassifier

Tensors = Mapping[str, NDArray[np.float32]]


class ControlVariates:
    """Corrects gradients in place, and sums them as they were.

    Args:
        model: Its trainable parameters have variates.
        own: Name -> this site's variate; a missing one is zero.
        shared: Name -> everybody's; a missing one is zero.
    """

    def __init__(self, model: "FineGrainedClassifier", own: Tensors, shared: Tensors) -> None:
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._shift: dict[str, torch.Tensor] = {}
        self._sum: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters.items():
            zero = np.zeros(tuple(parameter.shape), dtype=np.float32)
            shift = np.asarray(shared.get(name, zero)) - np.asarray(own.get(name, zero))
            self._shift[name] = torch.from_numpy(np.array(shift)).to(parameter.device)
            self._sum[name] = torch.zeros_like(parameter)
        self._steps = 0

    def __call__(self) -> None:
        """After each backward pass, before the step."""
        self._steps += 1
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self._sum[name] += parameter.grad
                parameter.grad.add_(self._shift[name])

    def fresh(self) -> dict[str, NDArray[np.float32]]:
        """The site's next variate: the mean of its uncorrected gradients."""
        return {
            name: (total / max(self._steps, 1)).cpu().float().numpy()
            for name, total in self._sum.items()
        }
