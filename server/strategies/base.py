"""Strategies on one streaming base: Flower's own, by method resolution order.

Flower's strategies hold every reply in a list before they average. The base here
takes an iterator of replies that are already screened and folds each into a running
mean in place, block by block, so that memory does not grow with the number of sites.
What a Flower strategy adds (FedProx's weight in the request, an optimiser after the
mean) lands on the base through ``super()``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx
from numpy.typing import NDArray

from fgvc_core.flower.records import to_array_record
from fgvc_core.wire.arrays import TensorSpec, pack_all
from fieldmark.server.strategies.mean import RunningMean, Tensors

Compose = Callable[[int, ArrayRecord, ConfigRecord], Iterable[Message]]

Specs = dict[str, TensorSpec]

Aggregate = tuple[ArrayRecord | None, MetricRecord | None]


@dataclass(frozen=True)
class SoundReply:
    """A screened reply: whose, its weight (above 0), its tensors."""

    site: str
    weight: float
    tensors: dict[str, NDArray[np.float32]]


class StreamingFedAvg(FedAvg):
    """FedAvg over a stream (McMahan et al. 2017, https://arxiv.org/abs/1602.05629).

    ``compose`` is set by the round: it makes one signed message for each site of the
    cohort, in place of Flower's own sampling over node ids.
    """

    needs: Literal["sum", "all"] = "sum"
    """Whether the rule needs only a sum of updates, or every one of them."""

    weighs = True
    """Whether a reply counts by its weight; a median counts each site once."""

    keeps = False
    """Whether sites keep something from round to round."""

    compose: Compose

    found: Callable[[], int] = staticmethod(lambda: 0)
    """How many sites screening has found out, asked once a round's replies are in."""

    needed = 1
    """Replies without which a round is void; what the strategy remembers stays as it was."""

    def begin(self, specs: Specs, sites: int) -> None:
        """Told once what travels, and how many sites the federation has."""

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
        """Take back what :meth:`state` gave."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each site of the cohort."""
        return self.compose(server_round, arrays, config)

    # Flower's own wrappers (FedOpt's, say) only pass ``replies`` on to ``super()``.
    def aggregate_train(  # type: ignore[override]
        self, server_round: int, replies: Iterable[SoundReply]
    ) -> Aggregate:
        """The weighted mean of the replies, or None where there were too few."""
        mean = RunningMean()
        for reply in replies:
            mean.fold(reply.tensors, reply.weight)
            # Let go of it before the next is asked for, here and in the other rules.
            del reply
        return self.result(mean.tensors, mean.weight, mean.count)

    def result(self, tensors: Tensors, weight: float, count: int) -> Aggregate:
        """A round's model as Flower hands it on, or None where replies were too few."""
        if count < max(self.needed, 1):
            return None, None
        return to_array_record(pack_all(tensors)), MetricRecord({"num-examples": weight})


class StreamingFedProx(FedProx, StreamingFedAvg):
    """FedProx (Li et al. 2020, https://arxiv.org/abs/1812.06127).

    Flower's class puts the weight of the pull into the request's configuration.
    """
