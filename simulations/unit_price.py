"""Accuracy cost of protecting subjects instead of images, measured on the same split.

Only a simulation can measure it: it repeats the release for both units, and without noise, on the
pictures of all sites, and scores the heads on the same test split.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from fgvc_core.errors import ConfigurationError
from fgvc_core.experiment import make_learner
from fgvc_core.flower.records import from_array_record
from fgvc_core.privacy.planning import plan_for
from fgvc_core.privacy.sampling import protected_units
from fgvc_core.privacy.settings import Unit
from fgvc_core.protocol.stages import Stage
from fgvc_core.recipe import Recipe
from fgvc_core.training.examples import Evaluation
from fgvc_core.training.learner import Learner
from fgvc_core.training.private import release_sums
from fgvc_core.wire.arrays import TensorSpec, unpack_all
from fieldmark.server.rounds.closed_form import ClosedForm
from fieldmark.server.strategies import SoundReply, Tensors
from fieldmark.simulations.folders import declared_units
from fieldmark.simulations.preparation import Setting, split_site

DRAWS = 5
"""Releases per unit: the noise of one draw has more effect than the choice of the unit."""


def unit_price(recipe: Recipe, setting: Setting) -> dict[str, Any]:
    """Mean top-1 and macro-F1 over several releases, by unit.

    Raises:
        ConfigurationError: if the recipe releases no class sums.
    """
    if recipe.privacy is None or recipe.privacy.method != "class-sums":
        raise ConfigurationError(
            "evaluate.unit_price needs privacy.method = 'class-sums'.",
            remedy="Leave evaluate.unit_price out.",
        )
    learner = make_learner(recipe, setting.table.num_classes)
    start = learner.tensors()
    test = learner.examples(setting.table.where("test"), setting.cache)
    figures: dict[str, Any] = {}
    for unit in ("image", "subject"):
        scores = []
        for _ in range(DRAWS):
            learner.load(_one_release(recipe, setting, learner, start, unit))
            scores.append(learner.evaluate(test, recipe.evaluate.batch_size)[0])
        figures[unit] = _summary(scores)
    image, subject = figures["image"], figures["subject"]
    figures["in_words"] = (
        f"The price of the subject unit at epsilon {recipe.privacy.epsilon:g}, mean of {DRAWS} "
        f"releases on the same split: top-1 {100 * image['top1']:.1f} % with images protected, "
        f"{100 * subject['top1']:.1f} % with subjects; macro-F1 {100 * image['macro_f1']:.1f} % "
        f"and {100 * subject['macro_f1']:.1f} %."
    )
    return figures


def _one_release(
    recipe: Recipe, setting: Setting, learner: Learner, start: Tensors, unit: Unit
) -> Tensors:
    assert recipe.privacy is not None
    privacy = recipe.privacy.model_copy(update={"unit": unit})
    planned = {event.purpose: event for event in plan_for(privacy, recipe.federation.rounds)}
    changed = recipe.model_copy(update={"privacy": privacy})

    def ask(
        stage: Stage, arrays: ArrayRecord, specs: dict[str, TensorSpec]
    ) -> Iterator[SoundReply]:
        learner.load(unpack_all(from_array_record(arrays), _specs(start)))
        for site in sorted(setting.rows):
            table, _ = split_site(recipe, setting, site)
            units_N = protected_units(
                unit, [table.content_key(i) for i in range(len(table))], table.subjects
            )
            event = planned[stage.privacy]  # type: ignore[index]
            examples = learner.examples(table, setting.cache)
            released = release_sums(learner, examples, units_N, event, privacy)
            yield SoundReply(site, 1, {stage.name: released.astype(np.float32)})

    units = declared_units(changed, setting)
    closed = ClosedForm(changed, units, setting.table.num_classes)
    tensors, _ = closed.run(start, ask, lambda stage, refused: None)
    assert tensors is not None
    return tensors


def _specs(tensors: Tensors) -> dict[str, TensorSpec]:
    return {name: TensorSpec("float32", array.shape) for name, array in tensors.items()}


def _summary(scores: list[Evaluation]) -> dict[str, float]:
    return {
        "top1": float(np.mean([s.top1 for s in scores])),
        "macro_f1": float(np.mean([s.macro_f1 for s in scores])),
        "top1_deviation": float(np.std([s.top1 for s in scores])),
    }
