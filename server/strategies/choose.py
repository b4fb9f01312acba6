"""From a recipe's word to its strategy."""

from pathlib import Path
from typing import Any

from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.training.settings import TrainSettings
from fieldmark.server.strategies.base import StreamingFedAvg, StreamingFedProx
from fieldmark.server.strategies.heterogeneous import FedNova, Scaffold
from fieldmark.server.strategies.optimisers import (
    StreamingFedAdagrad,
    StreamingFedAdam,
    StreamingFedAvgM,
    StreamingFedYogi,
)
from fieldmark.server.strategies.robust import (
    SpillingFedAvg,
    SpillingFedMedian,
    SpillingGeometricMedian,
    SpillingKrum,
    SpillingLeastTrimmed,
    SpillingMultiKrum,
    SpillingTrimmedMean,
)


def make_strategy(
    settings: FederationSettings, train: TrainSettings | None = None, spill: Path | None = None
) -> StreamingFedAvg:
    """The strategy that a recipe names.

    Args:
        settings: ``[federation]``.
        train: ``[train]``, for fednova.
        spill: Folder of the file of rules that need every reply.
    """
    bounds: dict[str, Any] = {
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,
    }
    name = settings.strategy
    if name == "fedprox":
        return StreamingFedProx(proximal_mu=settings.proximal_mu, **bounds)
    if name == "scaffold":
        return Scaffold(**bounds)
    if name == "fednova":
        return FedNova(train or TrainSettings(), **bounds)
    if name in ("fedavgm", "fedadam", "fedyogi", "fedadagrad"):
        return _optimiser(settings, bounds)
    if name == "fedavg":
        return StreamingFedAvg(**bounds)
    strategy = _robust(settings, bounds)
    strategy.spill_folder, strategy.spill_mb = spill, settings.spill_mb
    strategy.share, strategy.mix_nearest = settings.byzantine_share, settings.mix_nearest
    return strategy


def _optimiser(settings: FederationSettings, bounds: dict[str, Any]) -> StreamingFedAvg:
    lr = settings.server_lr
    if settings.strategy == "fedavgm":
        return StreamingFedAvgM(
            server_learning_rate=1.0 if lr is None else lr,
            server_momentum=settings.server_momentum,
            **bounds,
        )
    options: dict[str, Any] = {**bounds, "tau": settings.server_tau}
    if lr is not None:
        options["eta"] = lr
    if settings.strategy == "fedadagrad":
        return StreamingFedAdagrad(**options)
    options |= {"beta_1": settings.server_beta1, "beta_2": settings.server_beta2}
    kind = StreamingFedAdam if settings.strategy == "fedadam" else StreamingFedYogi
    return kind(**options)


def _robust(settings: FederationSettings, bounds: dict[str, Any]) -> SpillingFedAvg:
    if settings.strategy == "fedmedian":
        return SpillingFedMedian(**bounds)
    if settings.strategy == "trimmed-mean":
        return SpillingTrimmedMean(beta=settings.byzantine_share, **bounds)
    if settings.strategy == "geometric-median":
        return SpillingGeometricMedian(**bounds)
    if settings.strategy == "least-trimmed":
        return SpillingLeastTrimmed(**bounds)
    return SpillingKrum(**bounds) if settings.strategy == "krum" else SpillingMultiKrum(**bounds)
