"""Aggregation strategies: a streaming base class, and a registry by name."""

from pathlib import Path

from fgvc_core.components import STRATEGIES
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.training.settings import TrainSettings
from fieldmark.server.strategies.base import (
    Aggregation,
    RunningMean,
    Setup,
    SoundReply,
    Strategy,
    Tensors,
)

__all__ = [
    "Aggregation",
    "RunningMean",
    "Setup",
    "SoundReply",
    "Strategy",
    "Tensors",
    "make_strategy",
]


def make_strategy(
    federation: FederationSettings, train: TrainSettings | None = None, folder: Path | None = None
) -> Strategy:
    """Create the strategy that a recipe names.

    Args:
        federation: ``[federation]``.
        train: ``[train]``, for strategies that depend on how sites train.
        folder: For the temporary file of rules that need every reply.

    Raises:
        ConfigurationError: if it is not installed.
    """
    component = STRATEGIES.get(federation.strategy)
    strategy: Strategy = component.make(Setup(federation, train or TrainSettings(), folder))
    return strategy
