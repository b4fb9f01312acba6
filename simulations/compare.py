"""The comparison of federated training with pooled and local training, on the same splits.

Every model gets the same start, pre-training, schedule, passes and choice of the best round, from
the same recipe; what cannot be the same is refused, or done as a federation of one site. Beside
them stands a plain logistic regression, where the backbone is frozen.
"""

from collections.abc import Iterable
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.cache import cache_folder
from fgvc_core.errors import ConfigurationError
from fgvc_core.experiment import completed, make_learner
from fgvc_core.files import replace_json
from fgvc_core.recipe import Recipe
from fgvc_core.seeds import derive_seed
from fgvc_core.words import counted
from fieldmark.server.report.page import render
from fieldmark.server.report.reading import read_events
from fieldmark.server.report.refusals import run_refusals
from fieldmark.simulations.comparing.differences import METRICS, Draws, differences, draw_rows
from fieldmark.simulations.comparing.others import (
    POOLED,
    Model,
    done_here,
    federated_model,
    open_class_means,
    plain_model,
    train_other,
)
from fieldmark.simulations.comparing.single import run_single
from fieldmark.simulations.folders import check_out
from fieldmark.simulations.planning import Say, Simulation
from fieldmark.simulations.preparation import Setting, Tell, deal
from fieldmark.simulations.simulate import run_dealt
from fieldmark.simulations.workers import available_cores, hired

FEDERATED, LOCAL_MEAN, PLAIN = "federated", "local_mean", "plain"
OPEN, LOCAL_OPEN = "pooled_open", "local_open_mean"
"""Rows without privacy beside a federation of class sums: what its noise costs, and what a site has
that keeps its model to itself and so needs none."""

MOST_SEEDS = 100


def compare(
    plan: Simulation,
    tell: Tell = lambda done, total: None,
    seeds: int = 1,
    say: Say = lambda line: None,
    beside: Tell = lambda done, total: None,
) -> dict[str, Any]:
    """Simulate the federation, then learn from all pictures pooled and at each site alone.

    Args:
        plan: Recipe and folder.
        tell: Called with the number of prepared pictures.
        seeds: Repetitions, 1 to 100: the recipe's seed and those after it. The first one's run is
            in the plan's folder, the others' in ``seeds/`` inside it.
        say: Called with a line when the federation is done and the other models begin.
        beside: Called with (other models done, other models of this seed).

    Returns:
        ``federated``, ``pooled``, ``local`` by site, ``local_mean`` and ``plain`` (None without a
        frozen backbone; ``no_plain`` says why), each with ``top1`` and ``macro_f1`` on the held-out
        test split as means over seeds, with intervals; ``differences`` of the federation from each;
        ``refusals`` and more; also in ``compare.json`` and in the report.

    Raises:
        ConfigurationError: if the recipe cannot be compared, with what to do instead.
        FieldmarkError: if a run failed.
    """
    refuse_incomparable(plan.recipe, seeds)
    check_out(plan)
    workers = len(available_cores())
    results = []
    with hired(workers) as pool:
        for seed in range(plan.recipe.seed, plan.recipe.seed + seeds):
            results.append(_one_seed(seeded(plan, seed), pool, workers, tell, say, beside))
    result = _summary(plan.recipe, results)
    replace_json(plan.out / "compare.json", result)
    render(plan.out)
    return result


def refuse_incomparable(recipe: Recipe, seeds: int = 1) -> None:
    """Refuse a recipe that has no fair comparison.

    Raises:
        ConfigurationError: with the reason and the remedy.
    """
    if not 1 <= seeds <= MOST_SEEDS:
        raise ConfigurationError(
            f"--seeds {seeds} is not between 1 and {MOST_SEEDS}.",
            remedy="Three show whether training by chance matters; more make intervals narrower.",
        )
    scenario = recipe.scenario
    if scenario is not None and (scenario.turns or scenario.backdoors is not None):
        name = "turns" if scenario.turns else "backdoors"
        raise ConfigurationError(
            f"A recipe with scenario.{name} is a table of trials, which compare does not run.",
            why="Each trial is a federation of its own; one row could not stand for all of them.",
            remedy="Run the table with 'fieldmark simulate'. To compare the federation without "
            "faults, take the section [scenario] out of a copy of the recipe.",
        )
    if recipe.federation.local or recipe.model.norm == "local":
        what = "model.norm = 'local'" if recipe.model.norm == "local" else "federation.local"
        raise ConfigurationError(
            f"A recipe with {what} cannot be compared.",
            why="Each site ends with a model of its own, so that no federated model can answer the "
            "held-out test pictures.",
            remedy="Read 'Own model' in the report of 'fieldmark simulate', or compare without "
            "tensors that stay.",
        )


def seeded(plan: Simulation, seed: int) -> Simulation:
    """The plan with another seed, in a folder inside the plan's; the same for its own seed."""
    if seed == plan.recipe.seed:
        return plan
    # Read again, because a copy would keep the first seed's digest.
    recipe = Recipe.read({**plan.recipe.model_dump(mode="json", exclude_none=True), "seed": seed})
    return replace(plan, recipe=recipe, out=plan.out / "seeds" / f"seed={seed}", quiet=True)


@dataclass(frozen=True)
class _Seed:
    """What one seed gave."""

    plan: Simulation
    setting: Setting
    metrics: dict[str, Any]
    federated: Model
    pooled: Model
    local: dict[str, Model]
    plain: Model | None
    open: dict[str, Model]
    no_plain: str


def _one_seed(
    plan: Simulation, pool: Executor, workers: int, tell: Tell, say: Say, beside: Tell
) -> _Seed:
    setting = deal(plan.recipe, cache_folder())
    metrics = run_dealt(plan, setting, pool, workers, tell)
    plan = replace(plan, recipe=completed(plan.recipe, setting.table))
    recipe = plan.recipe
    names = sorted(setting.rows)
    no_plain = _why_no_plain(recipe, setting)
    last = "" if no_plain else ", and a plain regression"
    say(f"seed {recipe.seed}: pooled, and {counted(len(names), 'site')} alone{last}")
    # The pooled model takes as long as all local ones together, so it starts first.
    jobs = {POOLED: names, **{site: [site] for site in names}}
    if done_here(recipe):
        futures = {
            name: pool.submit(train_other, recipe, setting, sites) for name, sites in jobs.items()
        }
        plain = None if no_plain else pool.submit(plain_model, recipe, setting)
        for done, future in enumerate(as_completed(futures.values()), start=1):
            future.result()
            beside(done, len(jobs))
        others = {name: future.result() for name, future in futures.items()}
    else:
        plain = None if no_plain else pool.submit(plain_model, recipe, setting)
        others = {}
        for done, (name, sites) in enumerate(jobs.items(), start=1):
            others[name] = _single(plan, setting, name, sites, pool, workers)
            beside(done, len(jobs))
    sums = recipe.privacy is not None and recipe.privacy.method == "class-sums"
    exact = {
        name: pool.submit(open_class_means, recipe, setting, sites) for name, sites in jobs.items()
    } if sums else {}  # fmt: skip
    return _Seed(
        plan,
        setting,
        metrics,
        pool.submit(federated_model, recipe, setting, str(plan.out)).result(),
        others.pop(POOLED),
        others,
        None if plain is None else plain.result(),
        {name: future.result() for name, future in exact.items()},
        no_plain,
    )


def _single(
    plan: Simulation, setting: Setting, name: str, sites: list[str], pool: Executor, workers: int
) -> Model:
    run, dealt = run_single(plan, setting, name, sites, pool, workers)
    found = pool.submit(federated_model, run.recipe, dealt, str(run.out)).result()
    facts = {
        "start": run.recipe.train.start,
        "run_dir": str(run.out.relative_to(plan.out)),
        "rounds": run.recipe.federation.rounds,
    }
    if run.recipe.privacy is not None:
        facts |= {"epsilon": run.recipe.privacy.epsilon, "delta": run.recipe.privacy.delta}
    return replace(found, facts=facts)


def _why_no_plain(recipe: Recipe, setting: Setting) -> str:
    """Why no plain regression stands beside the models, or nothing."""
    if make_learner(recipe, setting.table.num_classes).frozen_backbone:
        return ""
    return (
        f"model.train = '{recipe.model.train}' trains the backbone: there are no fixed vectors of "
        "the pictures to fit a regression on."
    )


def _summary(recipe: Recipe, results: list[_Seed]) -> dict[str, Any]:
    first = results[0]
    test = first.setting.table.where("test")
    answers: dict[str, list[list[NDArray[np.int64]]]] = {
        FEDERATED: [[r.federated.predicted_N] for r in results],
        POOLED: [[r.pooled.predicted_N] for r in results],
        LOCAL_MEAN: [[m.predicted_N for m in r.local.values()] for r in results],
    }
    answers |= {f"local/{site}": [[r.local[site].predicted_N] for r in results]
                for site in first.local}  # fmt: skip
    if first.plain is not None:
        answers[PLAIN] = [[r.plain.predicted_N] for r in results if r.plain is not None]
    if first.open:
        answers[OPEN] = [[r.open[POOLED].predicted_N] for r in results]
        answers[LOCAL_OPEN] = [[r.open[site].predicted_N for site in r.local] for r in results]
    rows = draw_rows(
        answers, test.labels_N, test.subjects, test.num_classes, derive_seed(recipe.seed, "compare")
    )
    told = differences(rows, FEDERATED)
    local = {site: _row(rows[f"local/{site}"], [r.local[site] for r in results], results)
             for site in first.local}  # fmt: skip
    metrics = first.metrics
    return {
        FEDERATED: _row(rows[FEDERATED], [r.federated for r in results], results),
        POOLED: _row(rows[POOLED], [r.pooled for r in results], results),
        "local": local,
        LOCAL_MEAN: _row(rows[LOCAL_MEAN], [], results),
        PLAIN: _row(rows[PLAIN], [r.plain for r in results], results) if PLAIN in rows else None,
        "no_plain": first.no_plain or None,
        **{name: _row(rows[name], [], results) for name in (OPEN, LOCAL_OPEN) if name in rows},
        "differences": told,
        "seeds": [r.plan.recipe.seed for r in results],
        "start": recipe.train.start,
        "passes": metrics["rounds"] * recipe.train.epochs // recipe.train.pass_rounds,
        "test_examples": metrics["test_examples"],
        "test_subjects": len(set(test.subjects)),
        **({"personal": _personal(results)} if recipe.personal.epochs else {}),
        "refusals": [{"seed": r.plan.recipe.seed, **group} for r in results
                     for group in run_refusals(r.plan.out)],
        "notes": _notes(recipe, results),
    }  # fmt: skip


def _row(row: Draws, models: "Iterable[Model | None]", results: list[_Seed]) -> dict[str, Any]:
    """A row of ``compare.json``: scores, intervals, and each seed's facts."""
    found: dict[str, Any] = dict(row.values)
    for metric in METRICS:
        estimate = row.estimate(metric)
        bounds = None if estimate.low is None else [estimate.low, estimate.high]
        found[f"{metric}_interval"] = bounds
    facts = [model.facts for model in models if model is not None]
    if any(facts):
        found["made"] = [
            {"seed": result.plan.recipe.seed, **one}
            for result, one in zip(results, facts, strict=True)
        ]
    return found


def _personal(results: list[_Seed]) -> dict[str, Any]:
    """Accuracy of the sites' fine-tuned models on their own validation pictures, seeds together."""

    def share(parts: Iterable[tuple[int, int]]) -> float | None:
        pairs = list(parts)
        examples = sum(held for held, _ in pairs)
        return sum(right for _, right in pairs) / examples if examples else None

    own = [r.metrics["personal"] for r in results if r.metrics.get("personal")]
    weighed = [(p["examples"], round(p["examples"] * p["top1"])) for p in own]
    return {
        "examples": sum(held for held, _ in weighed),
        FEDERATED: share(weighed),
        POOLED: share(pair for r in results for pair in r.pooled.personal.values()),
        "local": share(
            pair for r in results for one in r.local.values() for pair in one.personal.values()
        ),
    }


def _notes(recipe: Recipe, results: list[_Seed]) -> list[str]:
    """What a reader has to know of how the rows were made."""
    notes = []
    if len(results) == 1:
        notes.append(
            "One seed: the intervals say how much the choice of test pictures matters, not how "
            "much another training would. Use --seeds 3."
        )
    if recipe.privacy is not None:
        notes.append(
            f"Pooled and alone are each one site under the same [privacy] (epsilon "
            f"{recipe.privacy.epsilon:g}, delta {recipe.privacy.delta:g}, unit "
            f"{recipe.privacy.unit}), with noise of their own."
        )
    if recipe.partition.unseen and results[0].plain is not None:
        notes.append(
            "The plain regression cannot name the classes of partition.unseen, of which nobody has "
            "a training picture."
        )
    if recipe.scenario is not None:
        notes.append("The federation has the faults and attacks of [scenario], the others none.")
    fraction = recipe.federation.fraction
    if fraction < 1:
        notes.append(
            f"A site takes part in {100 * fraction:g} % of the rounds; pooled and alone train as "
            "many rounds as one site does on average, at least one."
        )
    cut = sorted({
        str(event["site"])
        for r in results
        for event in read_events(r.plan.out / "events.jsonl")
        if event.get("event") == "weight_cut"
    })  # fmt: skip
    if cut:
        notes.append(
            f"federation.max_weight_share cut the weight of {', '.join(cut[:8])}"
            f"{' and others' if len(cut) > 8 else ''} in the federation: pooled, every picture "
            "counts alike."
        )
    if any(r.metrics.get("stopped") == "patience" for r in results):
        notes.append("federation.patience ended the federation; it also ends the others.")
    return notes
