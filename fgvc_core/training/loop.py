"""The local loop of one round: passes, learning rates, averaging, and corrections of gradients.

The local loop: one site's passes over its own data in one round.

The learning rate over a whole run, from PyTorch's own schedulers.

A site is called once a round and keeps nothing in between; PyTorch's one-cycle and
cyclic schedulers compute the rate from the step's number alone, so each round
starts them at the step where the last one ended.

An exponential moving average of the weights over a round's steps.

Polyak averaging as Izmailov et al. 2018 use it, https://arxiv.org/abs/1803.05407, in PyTorch's
exponential form (``torch.optim.swa_utils``). What a site answers is the average, not the last
step: it evens out noisy steps. Cost: a copy of what trains. A warning: a round of few steps
ends before the average has left its start; then it only shortens the step.

Learning rates by depth: what is near the picture is general and moves little.

Howard and Ruder 2018, "Universal Language Model Fine-tuning", section 3.2 (discriminative
fine-tuning), https://arxiv.org/abs/1801.06146. Costs nothing. A warning: from random weights
every layer has to move, and a factor below 1 only slows it down.

SCAFFOLD's correction of a site's drift (Karimireddy et al. 2020, algorithm 1).

Each gradient is moved by (shared - own): away from where this site's data pull, towards
where everybody's do. The site's next variate is the mean of its own gradients along the
way, which for plain SGD is the paper's option II and holds for any optimiser.
https://arxiv.org/abs/1910.06378
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CyclicLR, LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fgvc_core.losses.base import Answers
from fgvc_core.training.examples import Examples, Lesson
from fgvc_core.training.settings import TrainSettings

if TYPE_CHECKING:
    from fgvc_core.losses.base import Loss
    from fgvc_core.models.classifier import FineGrainedClassifier


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


class Averaged:
    """The moving average of parameters.

    Args:
        parameters: Those that train.
        decay: 0 (no average) to below 1.
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self._steps = 0
        self._means = [p.detach().clone() for p in parameters] if decay else []

    def step(self) -> None:
        """Take in the parameters as they are after a step."""
        if not self._decay:
            return
        self._steps += 1
        # The start is no sample: as in Adam, few steps must not be held back by it.
        decay = min(self._decay, self._steps / (self._steps + 10))
        update = get_ema_multi_avg_fn(decay)
        update(self._means, [p.detach() for p in self._parameters], self._steps)

    @torch.no_grad()
    def take_over(self) -> None:
        """Give the parameters their average."""
        for parameter, mean in zip(self._parameters, self._means, strict=False):
            parameter.copy_(mean)


def parameter_groups(
    model: "FineGrainedClassifier", lr: float, decay: float
) -> list[dict[str, Any]]:
    """The parameters that train, in groups for an optimiser.

    Head, pooling and attention have the full rate, the last stage ``decay`` times that, the
    stage before ``decay`` times that again.

    Args:
        model: Its stages set the depths.
        lr: The full rate.
        decay: Above 0 to 1; at 1 there is one group.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if decay == 1.0:
        return [{"params": [p for _, p in trained], "lr": lr}]
    depths: dict[int, list[nn.Parameter]] = {}
    for name, parameter in trained:
        depths.setdefault(_depth(name, model.stage_names), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * decay**depth}
        for depth, parameters in sorted(depths.items())
    ]


def _depth(name: str, stages: tuple[str, ...]) -> int:
    """0 behind the backbone, 1 in its last stage, and so on towards the picture."""
    own = name.removeprefix("backbone.").removeprefix("model.")
    if own == name:
        return 0
    # The longest name that fits: a container and its members are both stages.
    fitting = [i for i, stage in enumerate(stages) if own.startswith(f"{stage}.")]
    if not fitting:
        return len(stages)
    return len(stages) - max(fitting)


@dataclass(frozen=True)
class TrainingResult:
    """What the passes came to: mean training loss (nats) and examples a pass."""

    loss: float
    examples: int


def train_passes(
    model: "FineGrainedClassifier",
    examples: Examples,
    loss: "Loss",
    settings: TrainSettings,
    stretch: Stretch,
    generator: torch.Generator,
    proximal_mu: float = 0.0,
    correct: Callable[[], None] | None = None,
) -> TrainingResult:
    """Train in place for ``settings.epochs`` passes.

    Args:
        model: Its trainable parameters are changed.
        examples: At least one.
        loss: Mean loss over a batch.
        settings: Batch size, optimiser, learning rate.
        stretch: This round's place in the run, for the learning rate.
        generator: The only source of order and views.
        proximal_mu: Weight of FedProx's pull towards the parameters at the start
            (Li et al. 2020, equation 2, https://arxiv.org/abs/1812.06127); 0: none.
        correct: Called after each backward pass; may change the gradients.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    anchors = [p.detach().clone() for p in parameters] if proximal_mu > 0 else []
    optimizer = make_optimizer(parameter_groups(model, settings.lr, settings.layer_decay), settings)
    averaged = Averaged(parameters, settings.ema)
    steps = settings.epochs * math.ceil(len(examples) / settings.batch_size)
    scheduler = make_scheduler(optimizer, settings, stretch, steps)
    device = parameters[0].device
    total = torch.zeros((), dtype=torch.float64, device=device)
    autocast = _autocast(settings.precision, device)
    model.train()
    for _ in range(settings.epochs):
        order = torch.randperm(len(examples), generator=generator)
        for positions in order.split(settings.batch_size):
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                lesson = Lesson(*examples.lesson(model, positions, generator))
                answers = Answers(
                    model.classify(lesson.features_ND),
                    lesson.features_ND,
                    model.class_vectors(),
                    lesson.part_maps_NKHW,
                )
                value = loss.of(answers, lesson.targets.to(device))
            value.backward()
            if correct is not None:
                correct()
            for parameter, anchor in zip(parameters, anchors, strict=False):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - anchor, alpha=proximal_mu)
            if settings.clip_norm > 0:
                nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimizer.step()
            scheduler.step()
            averaged.step()
            total += value.detach() * len(positions)
    averaged.take_over()
    model.eval()
    return TrainingResult(float(total) / (settings.epochs * max(len(examples), 1)), len(examples))


def _autocast(precision: str, device: torch.device) -> torch.autocast:
    on_gpu = device.type == "cuda"
    half = precision == "bf16" or (
        precision == "auto" and on_gpu and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def make_optimizer(
    parameters: Sequence[nn.Parameter] | Sequence[dict[str, Any]], settings: TrainSettings
) -> torch.optim.Optimizer:
    """The recipe's optimiser, its moments afresh, over parameters or groups of them."""
    # The fused kernels do one pass over the memory instead of a dozen.
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True,
        )
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


Tensors = Mapping[str, NDArray[np.float32]]


class ControlVariates:
    """Corrects gradients in place, and sums them as they were.

    Args:
        model: Its trainable parameters have variates.
        own: Name -> this site's variate; a missing one is zero.
        shared: Name -> everybody's; a missing one is zero.
    """

    def __init__(self, model: "FineGrainedClassifier", own: Tensors, shared: Tensors) -> None:
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._shift: dict[str, torch.Tensor] = {}
        self._sum: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters.items():
            zero = np.zeros(tuple(parameter.shape), dtype=np.float32)
            shift = np.asarray(shared.get(name, zero)) - np.asarray(own.get(name, zero))
            self._shift[name] = torch.from_numpy(np.array(shift)).to(parameter.device)
            self._sum[name] = torch.zeros_like(parameter)
        self._steps = 0

    def __call__(self) -> None:
        """After each backward pass, before the step."""
        self._steps += 1
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self._sum[name] += parameter.grad
                parameter.grad.add_(self._shift[name])

    def fresh(self) -> dict[str, NDArray[np.float32]]:
        """The site's next variate: the mean of its uncorrected gradients."""
        return {
            name: (total / max(self._steps, 1)).cpu().float().numpy()
            for name, total in self._sum.items()
        }
