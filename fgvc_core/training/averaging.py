"""An exponential moving average of the weights over a round's steps.

Polyak averaging as Izmailov et al. 2018 use it, https://arxiv.org/abs/1803.05407, in PyTorch's
exponential form (``torch.optim.swa_utils``). What a site answers is the average, not the last
step: it evens out noisy steps. Cost: a copy of what trains. A warning: a round of few steps
ends before the average has left its start; then it only shortens the step.
"""

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Averaged:
    """The moving average of parameters.

    Args:
        parameters: Those that train.
        decay: 0 (no average) to below 1.
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self._steps = 0
        self._means = [p.detach().clone() for p in parameters] if decay else []

    def step(self) -> None:
        """Take in the parameters as they are after a step."""
        if not self._decay:
            return
        self._steps += 1
        # The start is no sample: as in Adam, few steps must not be held back by it.
        decay = min(self._decay, self._steps / (self._steps + 10))
        update = get_ema_multi_avg_fn(decay)
        update(self._means, [p.detach() for p in self._parameters], self._steps)

    @torch.no_grad()
    def take_over(self) -> None:
        """Give the parameters their average."""
        for parameter, mean in zip(self._parameters, self._means, strict=False):
            parameter.copy_(mean)
