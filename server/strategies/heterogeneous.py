"""Means for sites that differ: SCAFFOLD and FedNova. Flower has neither."""

import math
from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fgvc_core.protocol.tensor_names import CONTROL, as_control, controlled, split_control
from fgvc_core.training.settings import TrainSettings
from fieldmark.server.strategies.base import Aggregate, SoundReply, Specs, StreamingFedAvg
from fieldmark.server.strategies.mean import RunningMean, Tensors


class Scaffold(StreamingFedAvg):
    """SCAFFOLD (Karimireddy et al. 2020, algorithm 1, https://arxiv.org/abs/1910.06378).

    A site answers with its model and the change of its control variate; the server's
    variate moves by the mean change times the share of the federation that took part.
    """

    keeps = True

    def begin(self, specs: Specs, sites: int) -> None:
        """Variates start at zero."""
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
        """Take the server's variates back."""
        self._control = {**self._control, **tensors}

    def aggregate_train(  # type: ignore[override]
        self, server_round: int, replies: Iterable[SoundReply]
    ) -> Aggregate:
        """The weighted mean of the models; the variates move along."""
        mean, change = RunningMean(), RunningMean()
        for reply in replies:
            model, control = split_control(reply.tensors)
            mean.fold(model, reply.weight)
            change.fold(control, 1)
            del reply, model, control
        result = self.result(mean.tensors, mean.weight, mean.count)
        if result[0] is not None:
            share = np.float32(min(change.count / max(self._sites, 1), 1.0))
            self._control = {
                name: now + share * change.tensors[name] for name, now in self._control.items()
            }
        return result


class FedNova(StreamingFedAvg):
    """FedNova (Wang et al. 2020, section 4, https://arxiv.org/abs/2007.07481).

    Each update is divided by the length of its site's accumulated steps, and the mean
    multiplied by the mean length: a site with many pictures takes more steps, and would
    pull further than its share. The number of steps follows from the claimed number of
    examples. For Adam, whose steps are not sums of gradients, plain steps are counted.
    """

    def __init__(self, train: TrainSettings, **bounds: int) -> None:
        super().__init__(**bounds)  # type: ignore[arg-type]
        self._train = train

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each site; the model that is sent is what updates are taken from."""
        self._sent: Tensors = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def length(self, examples: float) -> float:
        """How far a site's steps add up (the norm of a, section 3.2), for its examples."""
        steps = self._train.epochs * math.ceil(examples / self._train.batch_size)
        rho = self._train.momentum if self._train.optimizer == "sgd" else 0.0
        if rho == 0.0:
            return float(steps)
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)

    def aggregate_train(  # type: ignore[override]
        self, server_round: int, replies: Iterable[SoundReply]
    ) -> Aggregate:
        """The mean of the normalised updates, times the mean length."""
        mean, lengths, weights = RunningMean(), 0.0, 0.0
        optimised = set(controlled(self._sent))
        for reply in replies:
            length = self.length(reply.weight)
            lengths += reply.weight * length
            weights += reply.weight
            # Statistics are not steps: they are averaged as they are.
            step = {
                n: (t - self._sent[n]) / np.float32(length) if n in optimised else t
                for n, t in reply.tensors.items()
            }
            mean.fold(step, reply.weight)
            del reply, step
        effective = np.float32(lengths / max(weights, 1.0))
        tensors = {
            n: self._sent[n] + effective * t if n in optimised else t
            for n, t in mean.tensors.items()
        }
        return self.result(tensors, mean.weight, mean.count)
