"""The base of all strategies: a weighted mean over a stream of replies.

A strategy receives an iterator of replies that are already screened and folds each into a running
mean in place, block by block: memory does not grow with the number of sites. Flower's strategies
hold every reply in a list before they average; where their arithmetic is used, it is called with
the finished mean (:mod:`fieldmark.server.strategies.optimisers`).
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.components import STRATEGIES
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.training.settings import TrainSettings
from fgvc_core.wire.arrays import TensorSpec, on_all_cores, pieces

Tensors = dict[str, NDArray[np.float32]]
Specs = dict[str, TensorSpec]


@dataclass(frozen=True)
class SoundReply:
    """A screened reply: whose, its weight (above 0), its tensors."""

    site: str
    weight: float
    tensors: Tensors


@dataclass(frozen=True)
class Setup:
    """What a strategy is made from.

    Attributes:
        federation: ``[federation]``, with the strategy's own table if it has one.
        train: ``[train]``.
        folder: For temporary files; None: the system's place for them.
    """

    federation: FederationSettings
    train: TrainSettings
    folder: Path | None = None


@dataclass(frozen=True)
class Aggregation:
    """What a strategy knows of the round whose replies it aggregates.

    Attributes:
        number: Of the round, from 1.
        model: The coordinator's model at the beginning of the round.
        needed: Replies without which the round is void: then nothing that the strategy remembers
            may change.
        rejected: Counts the sites that screening has found to be unsound; asked once all replies
            are in.
    """

    number: int
    model: Tensors
    needed: int = 1
    rejected: Callable[[], int] = lambda: 0


@STRATEGIES.register("fedavg")
class Strategy:
    """Federated averaging (McMahan et al. 2017, https://arxiv.org/abs/1602.05629).

    Other strategies derive from it and override what differs.

    Args:
        setup: The run's settings.
    """

    weighs = True
    """Whether a reply counts by its weight; a median counts each site once."""

    keeps = False
    """Whether sites keep something from round to round."""

    robust = False
    """Whether it bounds what hostile sites do to a round's updates."""

    guarded: int | None = None
    """Replies of the last round that the rule tolerated as hostile; None: it is no such rule."""

    proximal_mu = 0.0
    """Weight of the pull towards the received model in the sites' loss."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def begin(self, specs: Specs, sites: int) -> None:
        """Called once with what travels and how many sites the federation has."""

    def beside(self) -> Tensors:
        """Tensors that travel to the sites beside the model."""
        return {}

    def expected(self, specs: Specs) -> Specs:
        """What a reply's tensors must be, given the model's."""
        return specs

    def state(self) -> Tensors:
        """What the strategy remembers from round to round, for the checkpoint."""
        return {}

    def restore(self, tensors: Tensors) -> None:
        """Take back what :meth:`state` returned."""

    def aggregate(self, replies: Iterable[SoundReply], round_: Aggregation) -> Tensors | None:
        """The next model, or None where there were too few replies."""
        mean = RunningMean()
        for reply in replies:
            mean.fold(reply.tensors, reply.weight)
            # Let go of it before the next is asked for, here and in the other strategies.
            del reply
        return mean.tensors if mean.count >= max(round_.needed, 1) else None


@STRATEGIES.register("fedprox")
class FedProx(Strategy):
    """FedProx (Li et al. 2020, https://arxiv.org/abs/1812.06127): the pull is in the request."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.proximal_mu = setup.federation.proximal_mu


class RunningMean:
    """A weighted mean of tensors, folded in one at a time.

    ``mean += (x - mean) * (w / W)`` with W the weight so far (West 1979,
    https://doi.org/10.1145/359146.359153): float32 stays float32, equal updates give
    exactly themselves, and no sum grows with the number of sites. The order of the
    updates matters in the last bit, so the caller keeps it fixed.
    """

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self.weight: float = 0
        self.count = 0

    def fold(self, tensors: Tensors, weight: float) -> None:
        """Fold one update in; ``weight`` is above 0."""
        self.weight += weight
        self.count += 1
        if not self.tensors:
            self.tensors = {n: np.array(array, order="C") for n, array in tensors.items()}
            return
        share = weight / self.weight

        def move(piece: tuple[str, slice]) -> None:
            name, where = piece
            _move(self.tensors[name].reshape(-1)[where], tensors[name].reshape(-1)[where], share)

        of_all = pieces((name, mean.size) for name, mean in self.tensors.items())
        with warnings.catch_warnings():
            # What arrived cannot be written to, and is only read.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            on_all_cores(move, of_all, sum(mean.nbytes for mean in self.tensors.values()))


def _move(mean: NDArray[np.float32], new: NDArray[np.float32], share: float) -> None:
    # One pass over memory, which is what this costs; NumPy would need three.
    torch.from_numpy(mean).lerp_(torch.from_numpy(new), share)
