"""Models without a federation: one on the pictures of all sites, one for each site.

Each gets what the federation's recipe says: the same pre-training and start, the same schedule and
number of passes, the same choice of the best round, the same fine-tuning. A federation of one site
by plain averaging, that site alone, and its pictures pooled are one model, which a test shows.

What happens between sites has no counterpart here: the rule of aggregation, the pull of FedProx,
encodings, faults and attacks. Their effect is part of the difference that is measured.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.table import ExampleTable
from fgvc_core.experiment import make_learner
from fgvc_core.inference.checkpoint_file import read_checkpoint
from fgvc_core.protocol.stages import (
    FOLD_COUNTS,
    GRADIENTS,
    PERSONAL,
    PRETRAIN,
    SCORE,
    SECURE,
    STATISTICS,
    TRAIN,
    stages_of,
)
from fgvc_core.recipe import Recipe
from fgvc_core.training.baselines import train_alone
from fgvc_core.training.examples import Examples
from fgvc_core.training.learner import Learner
from fgvc_core.training.loop import Stretch
from fgvc_core.training.plain import plain_regression
from fgvc_core.training.self_supervised import Pretraining
from fgvc_core.training.start import fit_class_means, pooled_start
from fieldmark.server.rounds.cohort import wanted
from fieldmark.simulations.preparation import Setting, split_site, without_labels

POOLED = "pooled"

DONE_HERE = frozenset(
    {
        *(PRETRAIN, STATISTICS, GRADIENTS, FOLD_COUNTS, TRAIN, SCORE, PERSONAL),
        # One site alone has nobody to add up with.
        *(*SECURE[TRAIN], *SECURE[SCORE]),
    }
)
"""Stages of a run that this file does without a federation."""
STARTS_HERE = frozenset({"none", "means", "lda", "semantic", "regression", "auto"})


@dataclass(frozen=True)
class Model:
    """What is compared of one model.

    Attributes:
        predicted_N: int64 (N,), its answers on the test split, in the table's order.
        facts: How it was made, for ``compare.json``.
        personal: Site -> (validation pictures, right with the fine-tuned model); with
            ``personal.epochs`` only.
    """

    predicted_N: NDArray[np.int64]
    facts: dict[str, Any] = field(default_factory=dict)
    personal: dict[str, tuple[int, int]] = field(default_factory=dict)


def done_here(recipe: Recipe) -> bool:
    """Whether every part of the recipe's run is done by :func:`train_other`.

    Otherwise (under ``[privacy]``, or with a stage or start that this file does not know) only a
    federation of one site does the same.
    """
    known = set(stages_of(recipe)) <= DONE_HERE and recipe.train.start in STARTS_HERE
    return recipe.privacy is None and known


def budget(rounds: int, sites: int, fraction: float) -> int:
    """Rounds in which a site of the federation takes part, on average; at least one of any.

    >>> budget(20, 1000, 0.05), budget(48, 5, 1.0), budget(0, 5, 1.0)
    (1, 48, 0)
    """
    return max(round(rounds * wanted(sites, fraction) / sites), 1) if rounds else 0


def train_other(recipe: Recipe, setting: Setting, sites: list[str]) -> Model:
    """Train one model on the union of some sites' training parts, in a worker.

    Args:
        recipe: Completed; :func:`done_here` is true for it.
        setting: The federation's.
        sites: All sites for the pooled model, or one.
    """
    learner = make_learner(recipe, setting.table.num_classes)
    table = union(setting, sites, recipe, 0)
    train, validation = (
        learner.examples(part, setting.cache) for part in (table, union(setting, sites, recipe, 1))
    )
    # A site alone draws what it draws in the federation.
    purpose = sites[0] if len(sites) == 1 else POOLED
    count, federation = len(setting.rows), recipe.federation
    pretraining = _pretrain(recipe, setting, learner, sites, purpose)
    batch, attributes_KA = recipe.evaluate.batch_size, setting.table.attributes_KA
    pooled_start(learner, train, table.subjects, batch, attributes_KA)
    rounds = budget(federation.rounds, count, federation.fraction)
    trained = train_alone(learner, train, validation, rounds, federation.patience, batch, purpose)
    learner.load(trained.tensors)
    facts = {
        "start": recipe.train.start,
        "pretraining": pretraining,
        "passes": trained.passes,
        "best_round": trained.best_round,
    }
    predicted_N = _answers(recipe, setting, learner)
    personal = {
        site: _personal(recipe, setting, learner, site, trained.tensors) for site in sites
    } if recipe.personal.epochs else {}  # fmt: skip
    return Model(predicted_N, facts, {site: found for site, found in personal.items() if found[0]})


def federated_model(recipe: Recipe, setting: Setting, folder: str) -> Model:
    """The best model of a run's folder, scored again picture by picture, in a worker."""
    from pathlib import Path

    learner = make_learner(recipe, setting.table.num_classes)
    learner.load(read_checkpoint(Path(folder) / "checkpoints" / "best.safetensors")[0])
    return Model(_answers(recipe, setting, learner))


def open_class_means(recipe: Recipe, setting: Setting, sites: list[str]) -> Model:
    """Some sites' head of class sums without privacy, in a worker: exact sums, no noise."""
    assert recipe.privacy is not None
    learner = make_learner(recipe, setting.table.num_classes)
    train = learner.examples(union(setting, sites, recipe, 0), setting.cache)
    fit_class_means(learner, train, recipe.privacy)
    return Model(_answers(recipe, setting, learner))


def plain_model(recipe: Recipe, setting: Setting) -> Model:
    """Plain logistic regression on the pooled training vectors, in a worker."""
    learner = make_learner(recipe, setting.table.num_classes)
    table = union(setting, sorted(setting.rows), recipe, 0)
    test = setting.table.where("test")
    found = plain_regression(
        _vectors(learner, table, setting), table.labels_N, table.subjects,
        _vectors(learner, test, setting), recipe.seed,
    )  # fmt: skip
    return Model(found.predicted_M, {"C": found.strength, "cross_validated": found.score})


def union(setting: Setting, sites: list[str], recipe: Recipe, side: int) -> ExampleTable:
    """Training (0) or validation (1) pictures of some sites, in the table's order."""
    rows = {int(row): position for position, row in enumerate(setting.table.rows)}
    parts = [split_site(recipe, setting, site)[side] for site in sites]
    return setting.table.take(sorted(rows[int(row)] for part in parts for row in part.rows))


def _vectors(learner: Learner, table: ExampleTable, setting: Setting) -> NDArray[np.float32]:
    import torch

    examples = learner.examples(table, setting.cache)
    found: NDArray[np.float32] = (
        examples.features(learner.model, torch.arange(len(examples)), None).cpu().float().numpy()
    )
    return found


def _answers(recipe: Recipe, setting: Setting, learner: Learner) -> NDArray[np.int64]:
    test: Examples = learner.examples(setting.table.where("test"), setting.cache)
    return learner.evaluate(test, recipe.evaluate.batch_size)[1]


def _pretrain(
    recipe: Recipe, setting: Setting, learner: Learner, sites: list[str], purpose: str
) -> int:
    """Pre-train on the same unlabeled pictures as the federation; returns the rounds done."""
    settings = recipe.pretrain
    if settings.method == "none":
        return 0
    bank = learner.pictures(without_labels(recipe, setting, sites), setting.cache)
    work = Pretraining(learner, settings)
    rounds = budget(settings.rounds, len(setting.rows), recipe.federation.fraction)
    for number in range(1, rounds + 1):
        work.train_round(bank, Stretch(number, rounds), purpose)
    return rounds


def _personal(
    recipe: Recipe,
    setting: Setting,
    learner: Learner,
    site: str,
    tensors: dict[str, NDArray[np.float32]],
) -> tuple[int, int]:
    """Fine-tune for a site as in a federation: (its validation pictures, right afterwards)."""
    train, held = (learner.examples(part, setting.cache)
                   for part in split_site(recipe, setting, site))  # fmt: skip
    learner.load(tensors)
    learner.train_round(
        train, Stretch(1, 1), f"personal {site}",
        settings=recipe.personal.steps(recipe.train),
    )  # fmt: skip
    scored, _ = learner.evaluate(held, recipe.evaluate.batch_size)
    return scored.examples, scored.correct
