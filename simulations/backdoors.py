"""How often a model says what a backdoor wants: the share of pictures that the trigger turns."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgvc_core.data.table import ExampleTable
from fgvc_core.experiment import make_learner
from fgvc_core.scenario import Trigger
from fgvc_core.training.examples import Examples, FeatureExamples, PictureExamples
from fgvc_core.training.learner import Learner
from fieldmark.server.home import CoordinatorHome
from fieldmark.server.run_log.checkpoint import Checkpoints
from fieldmark.simulations.poisoning import TARGET, Triggered, triggered_features


@dataclass(frozen=True)
class Judged:
    """A run's best model on the test split.

    Attributes:
        top1: Share of pictures as they are that are named right.
        success: Trigger -> share of the pictures of other classes that are named as the target
            with the trigger on. Of a model that nobody attacked: the control.
    """

    top1: float
    success: dict[Trigger, float]


def judge_backdoors(
    out: Path, test: ExampleTable, cache: Path, triggers: tuple[Trigger, ...]
) -> Judged:
    """Score the best model of a run that has ended, with and without triggers.

    Args:
        out: The run's folder.
        test: The test split; pictures of the target itself are left out of ``success``.
        cache: Folder for decoded pictures and features.
        triggers: Which are tried.
    """
    home = CoordinatorHome.open(out)
    recipe = home.recipe
    learner = make_learner(recipe, test.num_classes)
    tensors, _ = Checkpoints(out, recipe, home.class_names).read("best")
    learner.load(tensors)
    batch = recipe.evaluate.batch_size
    scored, _ = learner.evaluate(learner.examples(test, cache), batch)
    others_N = test.labels_N != TARGET
    success: dict[Trigger, float] = {}
    for trigger in triggers:
        _, named_N = learner.evaluate(_with_trigger(learner, test, cache, trigger), batch)
        success[trigger] = float((named_N[others_N] == TARGET).mean())
    return Judged(scored.top1, success)


def _with_trigger(learner: Learner, test: ExampleTable, cache: Path, trigger: Trigger) -> Examples:
    if learner.frozen_backbone:
        features_ND = triggered_features(learner, test, cache, trigger)
        return FeatureExamples(features_ND, test.labels_N)
    examples = learner.examples(test, cache)
    assert isinstance(examples, PictureExamples)
    return Triggered(examples, np.ones(len(test), dtype=np.bool_), trigger)
