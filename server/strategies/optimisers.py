"""An optimiser after the mean, at the server: Flower's own classes over the streaming base.

Three things are added: their moments can be put into a checkpoint and taken back; what
comes out is float32 again (FedAdam's corrected rate is a float64 scalar, and its model with
it); and a normaliser's running statistics are averaged and no more (an adaptive step could
make a variance negative).
"""

from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi
from flwr.serverapp.strategy.fedopt import FedOpt

from fgvc_core.flower.records import to_array_record
from fgvc_core.protocol.tensor_names import is_statistic
from fgvc_core.wire.arrays import pack_all
from fieldmark.server.strategies.base import Aggregate, SoundReply, StreamingFedAvg
from fieldmark.server.strategies.mean import Tensors


class _OptimisedMean(StreamingFedAvg):
    """What an optimiser must leave alone, and what must come out of it."""

    statistics: Tensors

    def result(self, tensors: Tensors, weight: float, count: int) -> Aggregate:
        self.statistics = {name: a for name, a in tensors.items() if is_statistic(name)}
        return super().result(tensors, weight, count)

    def _settled(self, aggregate: Aggregate) -> Aggregate:
        arrays, metrics = aggregate
        if arrays is None:
            return None, metrics
        tensors: Tensors = {
            name: self.statistics[name]
            if name in self.statistics
            else array.numpy().astype(np.float32, copy=False)
            for name, array in arrays.items()
        }
        return to_array_record(pack_all(tensors)), metrics


class StreamingFedAvgM(FedAvgM, _OptimisedMean):
    """FedAvgM (Hsu et al. 2019, https://arxiv.org/abs/1909.06335)."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each site of the cohort."""
        # Flower's keeps its own copy from the first round on: the model is always ours.
        self.current_arrays = arrays
        self._names = list(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(  # type: ignore[override]
        self, server_round: int, replies: Iterable[SoundReply]
    ) -> Aggregate:
        """The mean, then a step with momentum."""
        return self._settled(super().aggregate_train(server_round, replies))  # type: ignore[arg-type]

    def state(self) -> Tensors:
        """The momentum."""
        vectors = self.momentum_vector or []
        return {
            f"momentum/{name}": np.asarray(vector, dtype=np.float32)
            for name, vector in zip(self._names if vectors else [], vectors, strict=True)
        }

    def restore(self, tensors: Tensors) -> None:
        """Take the momentum back; names are in the order in which models travel."""
        self._names = sorted(name.removeprefix("momentum/") for name in tensors)
        self.momentum_vector = [tensors[f"momentum/{n}"] for n in self._names] or None


class _Moments(FedOpt, _OptimisedMean):
    """What FedAdam, FedYogi and FedAdagrad remember."""

    def state(self) -> Tensors:
        """Both moments."""
        return {
            f"{moment}/{name}": np.asarray(array, dtype=np.float32)
            for moment, arrays in (("m", self.m_t), ("v", self.v_t))
            for name, array in (arrays or {}).items()
        }

    def restore(self, tensors: Tensors) -> None:
        """Take both moments back."""
        m, v = (
            {n.removeprefix(p): a for n, a in tensors.items() if n.startswith(p)}
            for p in ("m/", "v/")
        )
        self.m_t, self.v_t = m or None, v or None


class StreamingFedAdam(FedAdam, _Moments):
    """FedAdam (Reddi et al. 2021, https://arxiv.org/abs/2003.00295)."""

    def aggregate_train(  # type: ignore[override]
        self, server_round: int, replies: Iterable[SoundReply]
    ) -> Aggregate:
        """The mean, then a step of Adam."""
        return self._settled(super().aggregate_train(server_round, replies))  # type: ignore[arg-type]


class StreamingFedYogi(FedYogi, _Moments):
    """FedYogi (Reddi et al. 2021, https://arxiv.org/abs/2003.00295)."""

    def aggregate_train(  # type: ignore[override]
        self, server_round: int, replies: Iterable[SoundReply]
    ) -> Aggregate:
        """The mean, then a step of Yogi."""
        return self._settled(super().aggregate_train(server_round, replies))  # type: ignore[arg-type]


class StreamingFedAdagrad(FedAdagrad, _Moments):
    """FedAdagrad (Reddi et al. 2021, https://arxiv.org/abs/2003.00295)."""

    def aggregate_train(  # type: ignore[override]
        self, server_round: int, replies: Iterable[SoundReply]
    ) -> Aggregate:
        """The mean, then a step of Adagrad."""
        return self._settled(super().aggregate_train(server_round, replies))  # type: ignore[arg-type]
