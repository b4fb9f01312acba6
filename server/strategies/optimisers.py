"""Server optimizers (FedAvgM, FedAdam, FedYogi, FedAdagrad), with Flower's arithmetic.

Three things are added: the moments can be saved in a checkpoint and restored; the result is float32
again (FedAdam's corrected rate is a float64 scalar, which makes the model float64); and a
normalizer's running statistics are only averaged (an adaptive step could make a variance negative).
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi
from flwr.serverapp.strategy.fedopt import FedOpt

from fgvc_core.components import STRATEGIES
from fgvc_core.flower.records import to_array_record
from fgvc_core.protocol.tensor_names import is_statistic
from fgvc_core.wire.arrays import pack_all
from fieldmark.server.strategies.base import Aggregation, Setup, SoundReply, Strategy, Tensors


class _Finished(FedAvg):
    """Replaces Flower's own mean: returns the mean that is passed in."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return replies, None


class _AvgM(FedAvgM, _Finished):
    pass


class _Adam(FedAdam, _Finished):
    pass


class _Yogi(FedYogi, _Finished):
    pass


class _Adagrad(FedAdagrad, _Finished):
    pass


class ServerOptimizer(Strategy):
    """Base of the strategies that take an optimizer step from the model toward the mean."""

    def aggregate(self, replies: Iterable[SoundReply], round_: Aggregation) -> Tensors | None:
        """The mean, then an optimizer step."""
        mean = super().aggregate(replies, round_)
        if mean is None:
            return None
        made = self.step(to_array_record(pack_all(mean)), round_)
        return {
            name: mean[name] if is_statistic(name) else array.numpy().astype(np.float32, copy=False)
            for name, array in made.items()
        }

    @abstractmethod
    def step(self, mean: ArrayRecord, round_: Aggregation) -> ArrayRecord:
        """The next model, by Flower's arithmetic."""


@STRATEGIES.register("fedavgm")
class MomentumAverage(ServerOptimizer):
    """FedAvgM (Hsu et al. 2019, https://arxiv.org/abs/1909.06335)."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        lr = setup.federation.server_lr
        self._flower = _AvgM(
            server_learning_rate=1.0 if lr is None else lr,
            server_momentum=setup.federation.server_momentum,
        )
        self._names: list[str] = []

    def step(self, mean: ArrayRecord, round_: Aggregation) -> ArrayRecord:
        """A step with momentum."""
        self._names = list(mean)
        # Flower would otherwise use its own copy of the model from the first round.
        self._flower.current_arrays = to_array_record(pack_all(round_.model))
        made: ArrayRecord = self._flower.aggregate_train(round_.number, mean)[0]  # type: ignore
        return made

    def state(self) -> Tensors:
        """The momentum."""
        vectors = self._flower.momentum_vector or []
        return {
            f"momentum/{name}": np.asarray(vector, dtype=np.float32)
            for name, vector in zip(self._names if vectors else [], vectors, strict=True)
        }

    def restore(self, tensors: Tensors) -> None:
        """Restore the momentum; names are in the order of the exchanged models."""
        self._names = sorted(name.removeprefix("momentum/") for name in tensors)
        self._flower.momentum_vector = [tensors[f"momentum/{n}"] for n in self._names] or None


class AdaptiveStrategy(ServerOptimizer):
    """FedAdam, FedYogi and FedAdagrad (Reddi et al. 2021, https://arxiv.org/abs/2003.00295)."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._flower = self.optimizer()

    @abstractmethod
    def optimizer(self) -> FedOpt:
        """Flower's optimizer with this run's settings."""

    def options(self, *, betas: bool) -> dict[str, Any]:
        """Flower's arguments; settings that the recipe omits keep Flower's defaults."""
        settings = self.setup.federation
        options: dict[str, Any] = {"tau": settings.server_tau}
        if settings.server_lr is not None:
            options["eta"] = settings.server_lr
        if betas:
            options |= {"beta_1": settings.server_beta1, "beta_2": settings.server_beta2}
        return options

    def step(self, mean: ArrayRecord, round_: Aggregation) -> ArrayRecord:
        """A step divided by the root of the second moment."""
        self._flower.current_arrays = dict(round_.model)
        made: ArrayRecord = self._flower.aggregate_train(round_.number, mean)[0]  # type: ignore
        return made

    def state(self) -> Tensors:
        """Both moments."""
        return {
            f"{moment}/{name}": np.asarray(array, dtype=np.float32)
            for moment, arrays in (("m", self._flower.m_t), ("v", self._flower.v_t))
            for name, array in (arrays or {}).items()
        }

    def restore(self, tensors: Tensors) -> None:
        """Restore both moments."""
        m, v = (
            {n.removeprefix(p): a for n, a in tensors.items() if n.startswith(p)}
            for p in ("m/", "v/")
        )
        self._flower.m_t, self._flower.v_t = m or None, v or None


@STRATEGIES.register("fedadam")
class AdamAverage(AdaptiveStrategy):
    """FedAdam."""

    def optimizer(self) -> FedOpt:
        """Flower's FedAdam."""
        return _Adam(**self.options(betas=True))


@STRATEGIES.register("fedyogi")
class YogiAverage(AdaptiveStrategy):
    """FedYogi."""

    def optimizer(self) -> FedOpt:
        """Flower's FedYogi."""
        return _Yogi(**self.options(betas=True))


@STRATEGIES.register("fedadagrad")
class AdagradAverage(AdaptiveStrategy):
    """FedAdagrad."""

    def optimizer(self) -> FedOpt:
        """Flower's FedAdagrad."""
        return _Adagrad(**self.options(betas=False))
