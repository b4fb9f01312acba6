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
from torch.optim.lr_scheduler import ConstantLR, CyclicLR, LambdaLR, LRScheduler, OneCycleLR

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
        optimizer: Its learning rates are the highest that each group will have.
        settings: Which schedule.
        stretch: Which round of how many.
        steps: Steps a round, at least 1.
    """
    total = stretch.rounds * steps
    start = (stretch.round - 1) * steps
    if settings.schedule == "constant":
        return ConstantLR(optimizer, factor=1.0, total_iters=0)
    scheduler: LRScheduler
    # Groups may have rates of their own (layer_decay): the schedule scales each.
    highest = [float(group["lr"]) for group in optimizer.param_groups]
    if settings.schedule == "one-cycle":
        scheduler = OneCycleLR(
            optimizer,
            max_lr=highest,
            # One more than is used: the scheduler may be stepped after the last step.
            total_steps=total + 1,
            pct_start=_share(settings.warmup, total + 1),
            cycle_momentum=False,
        )
    elif settings.schedule == "cosine":
        scheduler = LambdaLR(optimizer, lambda step: _cosine(step, total, settings.warmup))
    else:
        half = max(settings.cycle_rounds * steps // 2, 1)
        scheduler = CyclicLR(
            optimizer,
            base_lr=[rate / 10 for rate in highest],
            max_lr=highest,
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


def _cosine(step: int, steps: int, warmup: float) -> float:
    """The share of the highest rate at a step that counts from 0: a rise, then half a cosine."""
    rise = max(round(warmup * steps), 1)
    if step < rise:
        return (step + 1) / rise
    done = min((step - rise) / max(steps - rise, 1), 1.0)
    return (1 + math.cos(math.pi * done)) / 2
