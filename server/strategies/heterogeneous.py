"""Strategies for heterogeneous sites: SCAFFOLD and FedNova."""

import math
from collections.abc import Iterable

import numpy as np

from fgvc_core.components import STRATEGIES
from fgvc_core.protocol.tensor_names import CONTROL, as_control, controlled, split_control
from fieldmark.server.strategies.base import (
    Aggregation,
    RunningMean,
    SoundReply,
    Specs,
    Strategy,
    Tensors,
)


@STRATEGIES.register("scaffold")
class Scaffold(Strategy):
    """SCAFFOLD (Karimireddy et al. 2020, algorithm 1, https://arxiv.org/abs/1910.06378).

    A site replies with its model and the change of its control variate; the server's variate moves
    by the mean change times the share of the federation that took part.
    """

    keeps = True

    def begin(self, specs: Specs, sites: int) -> None:
        """Set the variates to zero."""
        self._sites = sites
        self._control: Tensors = {
            name: np.zeros(specs[name].shape, dtype=np.float32) for name in controlled(specs)
        }

    def beside(self) -> Tensors:
        """The server's variates."""
        return as_control(self._control)

    def expected(self, specs: Specs) -> Specs:
        """The model, and the changes of a site's variates."""
        return {**specs, **{CONTROL + name: specs[name] for name in controlled(specs)}}

    def state(self) -> Tensors:
        """The server's variates."""
        return dict(self._control)

    def restore(self, tensors: Tensors) -> None:
        """Restore the server's variates."""
        self._control = {**self._control, **tensors}

    def aggregate(self, replies: Iterable[SoundReply], round_: Aggregation) -> Tensors | None:
        """The weighted mean of the models; updates the variates."""
        mean, change = RunningMean(), RunningMean()
        for reply in replies:
            model, control = split_control(reply.tensors)
            mean.fold(model, reply.weight)
            change.fold(control, 1)
            del reply, model, control
        if mean.count < max(round_.needed, 1):
            return None
        share = np.float32(min(change.count / max(self._sites, 1), 1.0))
        self._control = {
            name: now + share * change.tensors[name] for name, now in self._control.items()
        }
        return mean.tensors


@STRATEGIES.register("fednova")
class FedNova(Strategy):
    """FedNova (Wang et al. 2020, section 4, https://arxiv.org/abs/2007.07481).

    Each update is divided by the norm of its site's accumulated steps, and the mean is multiplied
    by the mean norm; otherwise a site with many images would take more steps and pull harder than
    its share. The number of steps follows from the claimed number of examples. For Adam, whose
    steps are not sums of gradients, plain steps are counted.
    """

    def length(self, examples: float) -> float:
        """Norm of a site's accumulated steps for its examples (norm of a, section 3.2)."""
        train = self.setup.train
        steps = train.epochs * math.ceil(examples / train.batch_size)
        rho = train.momentum if train.optimizer == "sgd" else 0.0
        if rho == 0.0:
            return float(steps)
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)

    def aggregate(self, replies: Iterable[SoundReply], round_: Aggregation) -> Tensors | None:
        """The mean of the normalized updates, times the mean norm."""
        sent = round_.model
        mean, lengths, weights = RunningMean(), 0.0, 0.0
        optimised = set(controlled(sent))
        for reply in replies:
            length = self.length(reply.weight)
            lengths += reply.weight * length
            weights += reply.weight
            # Running statistics are not optimizer steps: they are averaged without normalization.
            step = {
                n: (t - sent[n]) / np.float32(length) if n in optimised else t
                for n, t in reply.tensors.items()
            }
            mean.fold(step, reply.weight)
            del reply, step
        if mean.count < max(round_.needed, 1):
            return None
        effective = np.float32(lengths / max(weights, 1.0))
        return {
            n: sent[n] + effective * t if n in optimised else t for n, t in mean.tensors.items()
        }
