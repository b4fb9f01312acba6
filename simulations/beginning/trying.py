"""What ``fieldmark new`` tries: ways to learn, on held-out training pictures, and their speed.

Which way is better cannot be told from what pictures look like: a frozen backbone that was trained
on photographs names real birds well, drawn ones poorly, and skin lesions better by an earlier map
than by its last. So all are tried on a sample of the training pictures, a third of its subjects
held out. No test picture takes part.

Under differential privacy nothing is tried: a choice by how well something works on private
pictures is a release that no ledger would count.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from fgvc_core.data.cache import cache_folder
from fgvc_core.data.table import ExampleTable, fold_numbers
from fgvc_core.experiment import make_learner, pick_device
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.recipe import Recipe
from fgvc_core.training.baselines import train_alone
from fgvc_core.training.examples import Examples
from fgvc_core.training.head_search import Pooled, best_closed_form
from fgvc_core.training.learner import Learner
from fgvc_core.training.start import vectors

Tell = Callable[[int, int], None]
Way = Literal["frozen", "earlier", "scratch"]

FROZEN = {
    "backbone": "tf_efficientnet_lite0",
    "weights": "package",
    "attention": "none",
    "head": "linear",
    "train": "head",
}
"""``[model]`` of a frozen pre-trained backbone."""

EARLIER = {**FROZEN, "until": "blocks.4", "pooling": "moments"}
"""``[model]`` of the same up to an earlier map, for pictures unlike photographs of things."""

SCRATCH = {
    "backbone": "fieldmark_nano",
    "attention": "spatial",
    "pooling": "max",
    "train": "all",
}
"""``[model]`` of a small network from random weights."""

STEPS = {"epochs": 1, "batch_size": 16, "lr": 3e-3, "warmup": 0.15, "schedule": "one-cycle"}
"""``[train]`` of the small network."""

SAMPLE = 1500
"""Most training pictures that are tried on."""

PASSES = 15
"""Passes of the small network over the two learned thirds: enough to see whether it learns."""

FOLDS = 3
_KEY = b"fieldmark new"
_BATCH = 128
_TIMED, _SIDE = 4, 160
"""Pictures of a timed batch, and their side; other sides cost by their pixels."""


@dataclass(frozen=True)
class Trial:
    """One way, on held-out training pictures.

    Attributes:
        way: What was tried.
        top1: Share that was right, 0 to 1.
        macro_f1: Mean F1 over the classes, 0 to 1.
        pictures: Training pictures in the sample.
        seconds_a_pass: Processor seconds for one picture in one pass of training; 0 of what is
            frozen.
    """

    way: Way
    top1: float
    macro_f1: float
    pictures: int
    seconds_a_pass: float = 0.0

    def score(self, metric: str) -> float:
        """The metric that decides, ``top1`` or ``macro-f1``."""
        return self.macro_f1 if metric == "macro-f1" else self.top1


def sample(train: ExampleTable, most: int = SAMPLE) -> ExampleTable:
    """At most so many training pictures, of whole subjects, every class as often as in the table.

    Subjects are taken in an order that every machine has.
    """
    if len(train) <= most:
        return train
    parts = -(-len(train) // most)
    part_N = fold_numbers(train.subjects, train.labels_N, parts, _KEY)
    return train.take(np.flatnonzero(part_N == 0))


def try_frozen(
    train: ExampleTable,
    image_size: int,
    metric: str,
    tell: Tell | None = None,
    way: Literal["frozen", "earlier"] = "frozen",
) -> Trial:
    """A frozen backbone and the best closed form, each third predicted from the other two.

    Args:
        train: Training pictures, of which none is held out for good.
        image_size: Side of the square that the backbone sees, in pixels.
        metric: What the closed form is chosen by, ``top1`` or ``macro-f1``.
        tell: Called with (pictures looked at, pictures in all).
        way: The whole backbone, or the part up to an earlier map.
    """
    model = EARLIER if way == "earlier" else FROZEN
    recipe = Recipe.read(
        {"data": {"image_size": image_size}, "model": model, "train": {"start_metric": metric}}
    )
    learner = make_learner(recipe, train.num_classes, pick_device("auto"))
    features_ND = vectors(learner, learner.examples(train, cache_folder(), tell), _BATCH)
    fold_N = fold_numbers(train.subjects, train.labels_N, FOLDS, _KEY)
    pooled = Pooled(features_ND, train.labels_N, fold_N)
    folds = pooled.statistics(train.num_classes, FOLDS)
    tried = best_closed_form(folds, recipe.train, pooled, "discriminant").tried
    best = max(tried, key=lambda one: one.score(metric))
    return Trial(way, best.top1, best.macro_f1, len(train))


def try_scratch(train: ExampleTable, image_size: int, tell: Tell | None = None) -> Trial:
    """A small network, trained on two thirds for a few passes and scored on the last third.

    Args:
        train: Training pictures.
        image_size: Side of the square that the network sees, in pixels.
        tell: Called with (passes done, passes in all).
    """
    recipe = Recipe.read({"data": {"image_size": image_size}, "model": SCRATCH, "train": STEPS})
    learner = make_learner(recipe, train.num_classes, pick_device("auto"))
    fold_N = fold_numbers(train.subjects, train.labels_N, FOLDS, _KEY)
    learnt, held = (
        learner.examples(train.take(np.flatnonzero(at_N)), cache_folder())
        for at_N in (fold_N != 0, fold_N == 0)
    )
    nothing = learner.examples(train.take([]), cache_folder())
    seconds = timed(lambda: _trained(learner, learnt, nothing, tell))
    scored, _ = learner.evaluate(held, _BATCH)
    each = seconds / max(len(learnt) * PASSES, 1)
    return Trial("scratch", scored.top1, scored.macro_f1, len(train), each)


def _trained(learner: Learner, learnt: Examples, nothing: Examples, tell: Tell | None) -> None:
    found = train_alone(learner, learnt, nothing, PASSES, 0, _BATCH, "fieldmark new", tell)
    learner.load(found.tensors)


def look_seconds() -> float:
    """Processor seconds (on a GPU: seconds) for one look of the frozen backbone at one pixel."""
    device = pick_device("auto")
    settings = ModelSettings.model_validate({**FROZEN, "weights": "none"})
    model = build_classifier(settings, 2, _SIDE, 0).to(device).eval()
    images_NCHW = torch.zeros(_TIMED, 3, _SIDE, _SIDE, device=device)
    with torch.inference_mode():
        model.embed(images_NCHW)
        seconds = min(timed(lambda: model.embed(images_NCHW).cpu()) for _ in range(3))
    return seconds / (_TIMED * _SIDE**2)


def timed(work: Callable[[], object]) -> float:
    """Processor seconds of some work, which other programs do not lengthen; on a GPU, seconds."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    began = clock()
    work()
    return clock() - began
