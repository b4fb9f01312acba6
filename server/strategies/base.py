"""The base of all strategies: federated averaging over a stream of replies.

A strategy receives an iterator of accepted replies and folds each into a running mean in place,
block by block, so memory does not grow with the number of sites. Flower's strategies hold every
reply in a list before they average; if their arithmetic is used, it is called with the finished
mean (:mod:`fieldmark.server.strategies.optimisers`).
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
    """An accepted reply: its site, its weight (above 0), its tensors."""

    site: str
    weight: float
    tensors: Tensors


@dataclass(frozen=True)
class Setup:
    """Settings from which a strategy is created.

    Attributes:
        federation: ``[federation]``, with the strategy's own table if it has one.
        train: ``[train]``.
        folder: For temporary files; None: the system's temporary folder.
    """

    federation: FederationSettings
    train: TrainSettings
    folder: Path | None = None


@dataclass(frozen=True)
class Aggregation:
    """The round whose replies a strategy aggregates.

    Attributes:
        number: Of the round, from 1.
        model: The coordinator's model at the beginning of the round.
        needed: Quorum. With fewer replies the round is void, and the strategy must keep its state
            unchanged.
        rejected: Returns the number of sites that screening has refused; called once all replies
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
    """Whether replies are weighted; a median counts each site once."""

    keeps = False
    """Whether sites keep state from round to round."""

    robust = False
    """Whether the rule limits the influence of hostile sites on a round."""

    guarded: int | None = None
    """Number of hostile replies that the rule tolerated in the last round; None: it is not such
    a rule."""

    proximal_mu = 0.0
    """Weight of the proximal term, toward the received model, in the sites' loss."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def begin(self, specs: Specs, sites: int) -> None:
        """Called once with the exchanged tensors and the number of sites in the federation."""

    def beside(self) -> Tensors:
        """Tensors that are sent to the sites in addition to the model."""
        return {}

    def expected(self, specs: Specs) -> Specs:
        """Required tensors of a reply, given the model's."""
        return specs

    def state(self) -> Tensors:
        """The strategy's state between rounds, for the checkpoint."""
        return {}

    def restore(self, tensors: Tensors) -> None:
        """Restore the state that :meth:`state` returned."""

    def aggregate(self, replies: Iterable[SoundReply], round_: Aggregation) -> Tensors | None:
        """The next model, or None if there were too few replies."""
        mean = RunningMean()
        for reply in replies:
            mean.fold(reply.tensors, reply.weight)
            # Free the memory before the next reply is fetched, as in the other strategies.
            del reply
        return mean.tensors if mean.count >= max(round_.needed, 1) else None


@STRATEGIES.register("fedprox")
class FedProx(Strategy):
    """FedProx (Li et al. 2020, https://arxiv.org/abs/1812.06127).

    The sites add the proximal term; the request carries its weight.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.proximal_mu = setup.federation.proximal_mu


class RunningMean:
    """A weighted mean of tensors, updated with one at a time.

    ``mean += (x - mean) * (w / W)`` with W the weight so far (West 1979,
    https://doi.org/10.1145/359146.359153): float32 stays float32, the mean of equal updates is
    exact, and no sum grows with the number of sites. The last bit depends on the order of the
    updates, so the caller keeps it fixed.
    """

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self.weight: float = 0
        self.count = 0

    def fold(self, tensors: Tensors, weight: float) -> None:
        """Add one update; ``weight`` is above 0."""
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
            # Received arrays are read-only, and this code only reads them.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            on_all_cores(move, of_all, sum(mean.nbytes for mean in self.tensors.values()))


def _move(mean: NDArray[np.float32], new: NDArray[np.float32], share: float) -> None:
    # Memory-bound: torch needs one pass where NumPy would need three.
    torch.from_numpy(mean).lerp_(torch.from_numpy(new), share)
