"""The local loop: one site's passes over its own data in one round."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fgvc_core.losses.base import Answers
from fgvc_core.training.averaging import Averaged
from fgvc_core.training.examples import Examples, Lesson
from fgvc_core.training.groups import parameter_groups
from fgvc_core.training.schedule import Stretch, make_scheduler
from fgvc_core.training.settings import TrainSettings

if TYPE_CHECKING:
    from fgvc_core.losses.base import Loss
    from fgvc_core.models.classifier import FineGrainedClassifier


@dataclass(frozen=True)
class Outcome:
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
) -> Outcome:
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
    return Outcome(float(total) / (settings.epochs * max(len(examples), 1)), len(examples))


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
