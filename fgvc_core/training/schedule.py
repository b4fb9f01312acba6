"""The learning rate over a whole run, from PyTorch's own schedulers.

A site is called once a round and keeps nothing in between; PyTorch's one-cycle and
cyclic schedulers compute the rate from the step's number alone, so each round
starts them at the step where the last one ended.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CyclicLR, LRScheduler, OneCycleLR

from fgvc_core.training.settings import TrainSettings


@dataclass(frozen=True)
class Stretch:
    """One round's place in the run: ``round`` counts from 1 to ``rounds``."""

    round: int
    rounds: int


def make_scheduler(
    optimizer: Optimizer, settings: TrainSettings, stretch: Stretch, steps: int
) -> LRScheduler:
    """A scheduler that stands at the first step of a round.

    Args:
        optimizer: Its learning rates are set.
        settings: ``lr`` is the highest rate.
        stretch: Which round of how many.
        steps: Steps a round, at least 1.
    """
    total = stretch.rounds * steps
    start = (stretch.round - 1) * steps
    if settings.schedule == "constant":
        return ConstantLR(optimizer, factor=1.0, total_iters=0)
    scheduler: LRScheduler
    if settings.schedule == "one-cycle":
        scheduler = OneCycleLR(
            optimizer,
            max_lr=settings.lr,
            # One more than is used: the scheduler may be stepped after the last step.
            total_steps=total + 1,
            pct_start=_share(settings.warmup, total + 1),
            cycle_momentum=False,
        )
    else:
        half = max(settings.cycle_rounds * steps // 2, 1)
        scheduler = CyclicLR(
            optimizer,
            base_lr=settings.lr / 10,
            max_lr=settings.lr,
            step_size_up=half,
            cycle_momentum=False,
        )
    scheduler.last_epoch = start - 1
    # The order that PyTorch warns about belongs to schedulers that are stepped by hand
    # before training; here the step only moves the start.
    optimizer._opt_called = True  # type: ignore[attr-defined]
    scheduler.step()
    return scheduler


@lru_cache(maxsize=4096)
def mean_rate(settings: TrainSettings, stretch: Stretch, examples: int) -> float:
    """The mean learning rate of a site's steps in a round, for its number of examples."""
    # Beyond so many steps the mean hardly changes, and the walk costs.
    steps = min(settings.epochs * math.ceil(examples / settings.batch_size), 64)
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=settings.lr)
    scheduler = make_scheduler(optimizer, settings, stretch, steps)
    # PyTorch warns of a schedule that moves while nothing is trained; that is the point here.
    optimizer._opt_called = True  # type: ignore[attr-defined]
    total = 0.0
    for _ in range(steps):
        total += float(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return total / steps


def _share(warmup: float, steps: int) -> float:
    # PyTorch divides by the length of the rise, which is this product less one.
    return warmup * (1 + 1e-9) if warmup * steps == 1 else warmup
