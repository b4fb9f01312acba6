"""Strategies on one streaming base: Flower's own, by method resolution order.

Flower's strategies hold every reply in a list before they average. The base here
takes an iterator of replies that are already screened and folds each into a running
mean in place, block by block, so that memory does not grow with the number of sites.
What a Flower strategy adds (FedProx's weight in the request, an optimiser after the
mean) lands on the base through ``super()``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx
from numpy.typing import NDArray

from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.wire.arrays import pack_all
from server.records import to_array_record

BLOCK = 1 << 16
"""Values folded at once: 256 kB of float32, which stays in a core's cache."""

Compose = Callable[[int, ArrayRecord, ConfigRecord], Iterable[Message]]


@dataclass(frozen=True)
class SoundReply:
    """A screened reply: whose, its weight (at least 1), its tensors."""

    site: str
    weight: int
    tensors: dict[str, NDArray[np.float32]]


class RunningMean:
    """A weighted mean of tensors, folded in one at a time.

    ``mean += (x - mean) * (w / W)`` with W the weight so far (West 1979,
    https://doi.org/10.1145/359146.359153): float32 stays float32, equal updates give
    exactly themselves, and no sum grows with the number of sites. The order of the
    updates matters in the last bit, so the caller keeps it fixed.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, NDArray[np.float32]] = {}
        self.weight = 0

    def fold(self, tensors: dict[str, NDArray[np.float32]], weight: int) -> None:
        """Fold one update in; ``weight`` is at least 1."""
        self.weight += weight
        if not self.tensors:
            self.tensors = {n: np.array(array, order="C") for n, array in tensors.items()}
            return
        share = np.float32(weight / self.weight)
        buffer = np.empty(BLOCK, dtype=np.float32)
        for name, mean in self.tensors.items():
            flat, new = mean.reshape(-1), tensors[name].reshape(-1)
            for start in range(0, flat.size, BLOCK):
                into = flat[start : start + BLOCK]
                step = buffer[: into.size]
                np.subtract(new[start : start + BLOCK], into, out=step)
                step *= share
                into += step


class StreamingFedAvg(FedAvg):
    """FedAvg over a stream (McMahan et al. 2017, https://arxiv.org/abs/1602.05629).

    ``compose`` is set by the round: it makes one signed message for each site of the
    cohort, in place of Flower's own sampling over node ids.
    """

    needs: Literal["sum", "all"] = "sum"
    """Whether the rule needs only a sum of updates, or every one of them."""

    compose: Compose

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each site of the cohort."""
        return self.compose(server_round, arrays, config)

    # Flower's own wrappers (FedOpt's, say) only pass ``replies`` on to ``super()``.
    def aggregate_train(  # type: ignore[override]
        self, server_round: int, replies: Iterable[SoundReply]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The weighted mean of the replies, or None where there was none."""
        mean = RunningMean()
        for reply in replies:
            mean.fold(reply.tensors, reply.weight)
        if not mean.tensors:
            return None, None
        return (
            to_array_record(pack_all(mean.tensors)),
            MetricRecord({"num-examples": mean.weight}),
        )


class StreamingFedProx(FedProx, StreamingFedAvg):
    """FedProx (Li et al. 2020, https://arxiv.org/abs/1812.06127).

    Flower's class puts the weight of the pull into the request's configuration.
    """


def make_strategy(settings: FederationSettings) -> StreamingFedAvg:
    """The strategy that a recipe names."""
    bounds: dict[str, Any] = {
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,
    }
    if settings.strategy == "fedprox":
        return StreamingFedProx(proximal_mu=settings.proximal_mu, **bounds)
    return StreamingFedAvg(**bounds)
