"""The comparison of federated training with local and pooled training on the same splits.

If the federation adds noise, the others do not, because they release nothing; so the comparison
also shows the cost of privacy.
"""

from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np

from fgvc_core.data.cache import cache_folder
from fgvc_core.data.table import ExampleTable
from fgvc_core.experiment import completed, make_learner
from fgvc_core.files import replace_json
from fgvc_core.recipe import Recipe
from fgvc_core.training.baselines import train_alone
from fgvc_core.training.learner import Learner
from fgvc_core.training.loop import Stretch
from fgvc_core.training.self_supervised import Pretraining
from fgvc_core.training.start import fit_class_means
from fieldmark.server.report import render
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import Setting, Tell, deal, split_site, without_labels
from fieldmark.simulations.simulate import run_with
from fieldmark.simulations.workers import available_cores, hired

POOLED = "pooled"


def compare(plan: Simulation, tell: Tell = lambda done, total: None) -> dict[str, Any]:
    """Simulate the federation, then train each site alone and all pictures pooled.

    Returns:
        ``federated``, ``pooled``, ``local`` by site and ``local_mean``, each with ``top1`` and
        ``macro_f1`` on the held-out test split; also in ``compare.json`` and in the report.
    """
    workers = len(available_cores())
    with hired(workers) as pool:
        metrics = run_with(plan, pool, workers, tell)
        setting = deal(plan.recipe, cache_folder())
        plan = replace(plan, recipe=completed(plan.recipe, setting.table))
        others = _train_others(plan.recipe, setting, pool)
    pooled = others.pop(POOLED)
    result = {
        "federated": {name: metrics[name] for name in ("top1", "macro_f1")},
        "pooled": pooled,
        "local": others,
        "local_mean": {
            name: float(np.mean([figures[name] for figures in others.values()]))
            for name in ("top1", "macro_f1")
        },
        "passes": metrics["rounds"] * plan.recipe.train.epochs,
        "test_examples": metrics["test_examples"],
    }
    replace_json(plan.out / "compare.json", result)
    render(plan.out)
    return result


def _train_others(recipe: Recipe, setting: Setting, pool: Executor) -> dict[str, dict[str, float]]:
    test = setting.table.where("test")
    splits = {site: split_site(recipe, setting, site) for site in sorted(setting.rows)}
    # The pooled model takes as long as all local ones together, so it starts first.
    jobs: dict[str, list[tuple[ExampleTable, ExampleTable]]] = {POOLED: list(splits.values())}
    jobs |= {site: [split] for site, split in splits.items()}
    futures = {
        name: pool.submit(_train_and_score, recipe, setting, parts, test, name)
        for name, parts in jobs.items()
    }
    return {name: future.result() for name, future in futures.items()}


def _train_and_score(
    recipe: Recipe,
    setting: Setting,
    parts: list[tuple[ExampleTable, ExampleTable]],
    test: ExampleTable,
    name: str,
) -> dict[str, float]:
    """Train one model on the union of some sites' training parts, in a worker."""
    learner = make_learner(recipe, setting.table.num_classes)
    train, validation = (
        learner.examples(_union(setting.table, [part[side] for part in parts]), setting.cache)
        for side in (0, 1)
    )
    batch_size = recipe.evaluate.batch_size
    best_round = 1
    if recipe.privacy is not None and recipe.privacy.method == "class-sums":
        fit_class_means(learner, train, recipe.privacy)
    else:
        _pretrain(recipe, setting, learner, name)
        rounds, patience = recipe.federation.rounds, recipe.federation.patience
        trained = train_alone(learner, train, validation, rounds, patience, batch_size, name)
        learner.load(trained.tensors)
        best_round = trained.best_round
    scored, _ = learner.evaluate(learner.examples(test, setting.cache), batch_size)
    return {"top1": scored.top1, "macro_f1": scored.macro_f1, "best_round": best_round}


def _pretrain(recipe: Recipe, setting: Setting, learner: Learner, name: str) -> None:
    """Pre-train with the same rounds and unlabeled pictures as the federation."""
    settings = recipe.pretrain
    if settings.method == "none":
        return
    sites = sorted(setting.rows) if name == POOLED else [name]
    bank = learner.pictures(without_labels(recipe, setting, sites), setting.cache)
    work = Pretraining(learner, settings)
    for number in range(1, settings.rounds + 1):
        work.train_round(bank, Stretch(number, settings.rounds), name)


def _union(whole: ExampleTable, parts: list[ExampleTable]) -> ExampleTable:
    rows = {int(row): position for position, row in enumerate(whole.rows)}
    return whole.take(sorted(rows[int(row)] for part in parts for row in part.rows))
