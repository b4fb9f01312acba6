"""Local training of one round: epochs, learning rates, weight averaging, gradient corrections.

Learning rates over the run come from PyTorch's schedulers. A site is called once per round and
keeps no state; the one-cycle and cyclic schedulers compute the rate from the step number alone, so
each round starts them at the step where the last one ended.

``Averaged``: Polyak averaging, as in Izmailov et al. 2018, https://arxiv.org/abs/1803.05407, in
PyTorch's exponential form (``torch.optim.swa_utils``). A site sends the average instead of the last
step, which smooths noisy steps. Cost: a copy of the trainable parameters. A round of few steps ends
before the average has left its start; the average then only shortens the step.

``parameter_groups``: learning rates by depth, since early layers are general (Howard and Ruder
2018, "Universal Language Model Fine-tuning", section 3.2, https://arxiv.org/abs/1801.06146). No
cost. From random weights every layer must change, and a factor below 1 only slows it down.

``ControlVariates``: SCAFFOLD's correction of client drift (Karimireddy et al. 2020, algorithm 1,
https://arxiv.org/abs/1910.06378). Each gradient is changed by (shared - own). The site's next
variate is the mean of its gradients in the round, which for plain SGD equals the paper's option II
and works with any optimizer.
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
from fgvc_core.models.trainable import trained_parameters
from fgvc_core.training.examples import Examples, Lesson
from fgvc_core.training.settings import TrainSettings

if TYPE_CHECKING:
    from fgvc_core.losses.base import Loss
    from fgvc_core.models.classifier import FineGrainedClassifier


@dataclass(frozen=True)
class Stretch:
    """A round's place in the run: ``round`` counts from 1 to ``rounds``."""

    round: int
    rounds: int


def make_scheduler(
    optimizer: Optimizer, settings: TrainSettings, stretch: Stretch, steps: int
) -> LRScheduler:
    """Build a scheduler positioned at the first step of a round.

    Args:
        optimizer: Its learning rates are the maximum for each group.
        settings: ``[train]``, with the schedule.
        stretch: The round's place in the run.
        steps: Steps per round, at least 1.
    """
    total = stretch.rounds * steps
    start = (stretch.round - 1) * steps
    if settings.schedule == "constant":
        return ConstantLR(optimizer, factor=1.0, total_iters=0)
    scheduler: LRScheduler
    # Groups may have different rates (layer_decay); the schedule scales each.
    highest = [float(group["lr"]) for group in optimizer.param_groups]
    if settings.schedule == "one-cycle":
        scheduler = OneCycleLR(
            optimizer,
            max_lr=highest,
            # One extra, because the scheduler may be stepped after the last step.
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
    # Suppress PyTorch's warning about stepping the scheduler before the optimizer: here the
    # step only sets the start.
    optimizer._opt_called = True  # type: ignore[attr-defined]
    scheduler.step()
    return scheduler


@lru_cache(maxsize=4096)
def batches_of(order_N: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Batches of positions in order; a last batch of one is merged into the one before.

    Batch normalization has no variance of one example, and fails where its map has one position.
    """
    batches = list(order_N.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def batch_count(examples: int, batch_size: int) -> int:
    """Number of batches that :func:`batches_of` makes.

    >>> [batch_count(n, 8) for n in (0, 1, 8, 9, 10, 17)]
    [0, 1, 1, 1, 2, 2]
    """
    merged = examples > batch_size > 1 and examples % batch_size == 1
    return math.ceil(examples / batch_size) - merged


def mean_rate(settings: TrainSettings, stretch: Stretch, examples: int) -> float:
    """Mean learning rate of a site's steps in a round, for its number of examples."""
    # Capped, because beyond 64 steps the mean hardly changes but the loop costs time.
    steps = min(settings.epochs * batch_count(examples, settings.batch_size), 64)
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=settings.lr)
    scheduler = make_scheduler(optimizer, settings, stretch, steps)
    # Suppress PyTorch's warning: this steps the scheduler without training on purpose.
    optimizer._opt_called = True  # type: ignore[attr-defined]
    total = 0.0
    for _ in range(steps):
        total += float(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return total / steps


def _share(warmup: float, steps: int) -> float:
    # PyTorch divides by the length of the warm-up, warmup * steps - 1, which must not be 0.
    return warmup * (1 + 1e-9) if warmup * steps == 1 else warmup


def _cosine(step: int, steps: int, warmup: float) -> float:
    """Share of the maximum rate at a step, counted from 0: linear warm-up, then half a cosine."""
    rise = max(round(warmup * steps), 1)
    if step < rise:
        return (step + 1) / rise
    done = min((step - rise) / max(steps - rise, 1), 1.0)
    return (1 + math.cos(math.pi * done)) / 2


class Averaged:
    """Exponential moving average of parameters.

    Args:
        parameters: The trainable parameters.
        decay: 0 (no average) to below 1.
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self._steps = 0
        self._means = [p.detach().clone() for p in parameters] if decay else []

    def step(self) -> None:
        """Update the average with the parameters after a step."""
        if not self._decay:
            return
        self._steps += 1
        # The decay grows with the steps, so that the start does not dominate a short round.
        decay = min(self._decay, self._steps / (self._steps + 10))
        update = get_ema_multi_avg_fn(decay)
        update(self._means, [p.detach() for p in self._parameters], self._steps)

    @torch.no_grad()
    def take_over(self) -> None:
        """Set the parameters to their average."""
        for parameter, mean in zip(self._parameters, self._means, strict=False):
            parameter.copy_(mean)


def parameter_groups(
    model: "FineGrainedClassifier", lr: float, decay: float
) -> list[dict[str, Any]]:
    """Trainable parameters in groups for an optimizer, with learning rates by depth.

    Head, pooling and attention have the full rate, the last stage ``decay`` times that, the
    stage before ``decay`` times that again.

    Args:
        model: The model; its stages define the depths.
        lr: The full rate.
        decay: Above 0 to 1; 1 gives one group.
    """
    trained = trained_parameters(model)
    if decay == 1.0:
        return [{"params": list(trained.values()), "lr": lr}]
    depths: dict[int, list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        depths.setdefault(_depth(name, model.stage_names), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * decay**depth}
        for depth, parameters in sorted(depths.items())
    ]


def _depth(name: str, stages: tuple[str, ...]) -> int:
    """0 behind the backbone, 1 in its last stage, and so on toward the input."""
    own = name.removeprefix("backbone.").removeprefix("model.")
    if own == name:
        return 0
    # Take the longest match, because a container and its members are both stages.
    fitting = [i for i, stage in enumerate(stages) if own.startswith(f"{stage}.")]
    if not fitting:
        return len(stages)
    return len(stages) - max(fitting)


@dataclass(frozen=True)
class TrainingResult:
    """Mean training loss (nats), and examples per epoch."""

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
    """Train in place for ``settings.epochs`` epochs.

    Args:
        model: Its trainable parameters are changed.
        examples: Training examples, at least one.
        loss: Mean loss over a batch.
        settings: Batch size, optimizer, learning rate.
        stretch: The round's place in the run, for the learning rate.
        generator: The only source of randomness for order and views.
        proximal_mu: Weight of FedProx's proximal term (Li et al. 2020, equation 2,
            https://arxiv.org/abs/1812.06127); 0: none.
        correct: Called after each backward pass; may change the gradients.
    """
    parameters = list(trained_parameters(model).values())
    anchors = [p.detach().clone() for p in parameters] if proximal_mu > 0 else []
    optimizer = make_optimizer(parameter_groups(model, settings.lr, settings.layer_decay), settings)
    averaged = Averaged(parameters, settings.ema)
    steps = settings.epochs * batch_count(len(examples), settings.batch_size)
    scheduler = make_scheduler(optimizer, settings, stretch, steps)
    device = parameters[0].device
    total = torch.zeros((), dtype=torch.float64, device=device)
    autocast = autocast_of(settings.precision, device)
    model.train()
    for _ in range(settings.epochs):
        order = torch.randperm(len(examples), generator=generator)
        for positions in batches_of(order, settings.batch_size):
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


def autocast_of(precision: str, device: torch.device) -> torch.autocast:
    """Context of a training step: bfloat16 if asked for, and with ``auto`` on a GPU that has it."""
    on_gpu = device.type == "cuda"
    half = precision == "bf16" or (
        precision == "auto" and on_gpu and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def make_optimizer(
    parameters: Sequence[nn.Parameter] | Sequence[dict[str, Any]], settings: TrainSettings
) -> torch.optim.Optimizer:
    """Build the recipe's optimizer, with fresh state, over parameters or groups of them."""
    # Fused kernels pass over the memory once instead of a dozen times.
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
    """Corrects gradients in place, and sums the uncorrected ones.

    Args:
        model: Its trainable parameters have variates.
        own: Name -> this site's variate; zero if missing.
        shared: Name -> the global variate; zero if missing.
    """

    def __init__(self, model: "FineGrainedClassifier", own: Tensors, shared: Tensors) -> None:
        self._parameters = trained_parameters(model)
        self._shift: dict[str, torch.Tensor] = {}
        self._sum: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters.items():
            zero = np.zeros(tuple(parameter.shape), dtype=np.float32)
            shift = np.asarray(shared.get(name, zero)) - np.asarray(own.get(name, zero))
            self._shift[name] = torch.from_numpy(np.array(shift)).to(parameter.device)
            self._sum[name] = torch.zeros_like(parameter)
        self._steps = 0

    def __call__(self) -> None:
        """Call after each backward pass, before the step."""
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
