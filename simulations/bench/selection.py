"""Benchmark ``selection``: active learning methods against random selection of pictures to label.

On embedded pictures, without a federation: a first model learns from a few labeled pictures; then
each method repeatedly selects the next ones from the same pool by its current model, and a new
model learns from all labeled pictures. Numbers of labels, passes, seeds and first pictures are
equal; the held-out test split is not used for selection. ``value`` is a method's mean top-1 over
all steps after the first, ``reference`` that of random selection.
"""

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from fgvc_core.data.cache import cache_folder
from fgvc_core.data.table import ExampleTable
from fgvc_core.experiment import make_learner, make_table
from fgvc_core.inference.selecting import embed_all
from fgvc_core.recipe import Recipe, parse_recipe
from fgvc_core.training.acquisition import METHODS, Method, pick
from fgvc_core.training.learner import Learner
from fgvc_core.training.loop import Stretch

SEEDS = (1, 2, 3)
FIRST = 150
STEP = 75
STEPS = 3
PASSES = 25

RECIPE = """
name = "selection"
[data]
name = "fieldmarks"
image_size = 48
fieldmarks_train = 900
fieldmarks_test = 600
[model]
backbone = "fieldmark_nano"
attention = "none"
pooling = "max"
[train]
batch_size = 16
lr = 3e-3
warmup = 0.15
schedule = "one-cycle"
"""

Say = Callable[[str], None]


def bench_selection(say: Say = lambda line: None) -> dict[str, Any]:
    """The figures of ``fieldmark bench selection``, one per method."""
    found: dict[Method, list[list[float]]] = {method: [] for method in METHODS}
    for seed in SEEDS:
        study = Study(parse_recipe(RECIPE, [f"seed={seed}"]))
        for method in METHODS:
            found[method].append(study.scores(method))
            say(f"{method}, seed {seed}: " + " ".join(f"{s:.3f}" for s in found[method][-1]))
    return {method: _figure(found[method], found["random"]) for method in METHODS}


def _figure(found: list[list[float]], random: list[list[float]]) -> dict[str, Any]:
    """One method's figures; each list has a seed's scores, step by step."""
    ones, others = ([statistics.mean(scores) for scores in each] for each in (found, random))
    gains = [one - other for one, other in zip(ones, others, strict=True)]
    value, reference = statistics.mean(ones), statistics.mean(others)
    steps = ", ".join(f"{statistics.mean(step):.3f}" for step in zip(*found, strict=True))
    return {
        "value": round(value, 4),
        "reference": round(reference, 4),
        "ratio": round(value / reference, 4) if reference else None,
        "gain": round(statistics.mean(gains), 4),
        "gain_deviation": round(statistics.stdev(gains), 4),
        "unit": "top1",
        "how": f"{FIRST} labels, then {STEPS} times {STEP} more, {len(SEEDS)} seeds; after each "
        f"step {steps}",
    }


class Study:
    """One seed's pictures, and the model that all methods start from.

    Args:
        recipe: Learner and data; the training split is the pool, and only labels of selected
            pictures are used.
        first: Number of pictures that are labeled at first.
        step: Number of pictures selected per step.
        steps: Number of steps.
        passes: Over the labeled pictures, for each model.
    """

    def __init__(
        self,
        recipe: Recipe,
        first: int = FIRST,
        step: int = STEP,
        steps: int = STEPS,
        passes: int = PASSES,
    ) -> None:
        self._recipe, self._step, self._steps, self._passes = recipe, step, steps, passes
        self._cache = cache_folder()
        table = make_table(recipe, self._cache)
        self._train, self._test = table.where("train"), table.where("test")
        drawn = np.random.default_rng(recipe.seed).permutation(len(self._train))
        self._first = np.sort(drawn[:first])
        self._learner = self._learnt(self._first)

    def scores(self, method: Method) -> list[float]:
        """Top-1 after each step of a method."""
        labelled, learner, scores = self._first, self._learner, []
        for number in range(self._steps):
            open_ = np.setdiff1d(np.arange(len(self._train)), labelled)
            features_ND, logits_NK = self._seen(learner, self._train.take(open_))
            covered_MD, _ = self._seen(learner, self._train.take(labelled))
            seed = 1000 * self._recipe.seed + number
            chosen, _ = pick(method, logits_NK, features_ND, covered_MD, self._step, seed)
            labelled = np.sort(np.concatenate([labelled, open_[chosen]]))
            learner = self._learnt(labelled)
            test = learner.examples(self._test, self._cache)
            scores.append(learner.evaluate(test, self._recipe.evaluate.batch_size)[0].top1)
        return scores

    def _learnt(self, labelled: np.ndarray[Any, np.dtype[np.int64]]) -> Learner:
        learner = make_learner(self._recipe, self._train.num_classes)
        examples = learner.examples(self._train.take(labelled), self._cache)
        for number in range(1, self._passes + 1):
            learner.train_round(examples, Stretch(number, self._passes), "selection")
        return learner

    def _seen(self, learner: Learner, table: ExampleTable) -> tuple[Any, Any]:
        return embed_all(learner, table, self._cache, self._recipe.evaluate.batch_size)
