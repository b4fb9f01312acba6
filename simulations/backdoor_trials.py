"""Trials of backdoor attacks against several strategies, over seeds and numbers of sites.

The run's own folder holds the first strategy without an attack at the first size and seed;
``trials/NAME`` holds each of the others. ``metrics.json`` is updated after every trial, so an
interrupted table is not lost.
"""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fgvc_core.data.cache import cache_folder
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import RunFailed, RunInterrupted
from fgvc_core.experiment import completed, make_learner
from fgvc_core.files import replace_json
from fgvc_core.protocol.settings import StrategyName
from fgvc_core.recipe import Recipe
from fgvc_core.scenario import BackdoorAttack, BackdoorTable, ScenarioSettings, Trigger
from fgvc_core.training.examples import Examples, FeatureExamples
from fgvc_core.training.learner import Learner
from fgvc_core.words import counted
from fieldmark.server.home import CoordinatorHome
from fieldmark.server.report.page import render
from fieldmark.server.run_log.checkpoint import Checkpoints
from fieldmark.simulations.engines import run_inprocess
from fieldmark.simulations.folders import check_out, lay_out, site_homes
from fieldmark.simulations.planning import Say, Simulation
from fieldmark.simulations.poisoning import TARGET, Triggered, triggered_features
from fieldmark.simulations.preparation import Setting, Tell, deal, prepare
from fieldmark.simulations.trials import count_replies, read_metrics
from fieldmark.simulations.workers import available_cores, hired

Entry = dict[str, Any]


class Trial(NamedTuple):
    """One cell of the table: a strategy, and an attack or None."""

    strategy: StrategyName
    attack: BackdoorAttack | None

    @property
    def name(self) -> str:
        """Name of the trial's folder."""
        if self.attack is None:
            return f"none-{self.strategy}"
        return f"{self.attack.trigger}-{self.attack.poisoned:g}-{self.strategy}"


def trials_of(table: BackdoorTable) -> Iterator[Trial]:
    """Every strategy without and with the first attack; the last one with all others, too."""
    for strategy in table.defences:
        yield Trial(strategy, None)
        yield Trial(strategy, table.attacks[0])
    for attack in table.attacks[1:]:
        yield Trial(table.defences[-1], attack)


def recipe_of(recipe: Recipe, trial: Trial, sites: int, seed: int) -> Recipe:
    """The recipe of one trial, validated again."""
    scenario = recipe.scenario
    assert scenario is not None
    values = recipe.model_dump(mode="json", exclude_none=True)
    values["seed"] = seed
    values["partition"]["sites"] = sites
    values["federation"]["strategy"] = trial.strategy
    if trial.attack is None:
        del values["scenario"]
    else:
        changes = {"attack": "backdoor", "backdoors": None, **trial.attack.model_dump()}
        attacked = ScenarioSettings.read({**scenario.model_dump(), **changes}, "scenario")
        values["scenario"] = attacked.model_dump(mode="json", exclude_none=True)
    return Recipe.read(values)


def run_backdoors(
    plan: Simulation, tell: Tell = lambda done, total: None, say: Say = lambda line: None
) -> Entry:
    """Simulate a recipe's table of backdoors.

    Args:
        plan: Its recipe has ``scenario.backdoors``.
        tell: Called with the number of prepared pictures.
        say: Called after each trial.

    Returns:
        The metrics of the first run, with ``backdoors``: one entry per trial with ``sites``,
        ``seed``, ``strategy``, ``trigger`` and ``poisoned`` (None without an attack), ``top1``,
        ``success`` (trigger -> share; without an attack: the control), ``failed``, and counts of
        replies (``struck``: hostile ones; 0 if no hostile site was drawn, so there was no attack).
        ``top1`` is None if the run failed.
    """
    scenario = plan.recipe.scenario
    assert scenario is not None
    table = scenario.backdoors
    assert table is not None
    check_out(plan)
    for trial in trials_of(table):
        # Invalid combinations are refused now, not after the first runs.
        recipe_of(plan.recipe, trial, table.sites[0], table.seeds[0])
    workers = len(available_cores())
    entries: list[Entry] = []
    metrics: Entry = {}
    with hired(workers) as pool:
        # Seeds in the outer loop, so an interrupted table has all columns with fewer seeds.
        for seed in table.seeds:
            for sites in table.sites:
                setting: Setting | None = None
                for trial in trials_of(table):
                    recipe = recipe_of(plan.recipe, trial, sites, seed)
                    if setting is None:
                        setting = deal(recipe, cache_folder())
                        prepare(completed(recipe, setting.table), setting, pool, tell)
                    folder = plan.out / "trials" / f"{sites}-sites-seed-{seed}-{trial.name}"
                    now = replace(
                        plan,
                        recipe=completed(recipe, setting.table),
                        out=folder if entries else plan.out,
                        sites=None,
                    )
                    told = _told_triggers(table, trial)
                    found = _run(now, trial, told, setting, pool, workers)
                    entries.append({"sites": sites, "seed": seed, **found})
                    if not metrics:
                        metrics = read_metrics(plan.out)
                    metrics["backdoors"] = entries
                    replace_json(plan.out / "metrics.json", metrics)
                    say(_line(entries[-1]))
    render(plan.out)
    return metrics


def _told_triggers(table: BackdoorTable, trial: Trial) -> tuple[Trigger, ...]:
    if trial.attack is not None:
        return (trial.attack.trigger,)
    return tuple(dict.fromkeys(attack.trigger for attack in table.attacks))


def _run(
    plan: Simulation,
    trial: Trial,
    triggers: tuple[Trigger, ...],
    setting: Setting,
    pool: Executor,
    workers: int,
) -> Entry:
    lay_out(plan, setting)
    judged, failed = BackdoorScores(float("nan"), {}), None
    try:
        run_inprocess(plan.out, site_homes(plan, setting), pool, workers, quiet=True)
        judged = judge_backdoors(plan.out, setting.table.where("test"), setting.cache, triggers)
    except RunInterrupted:
        # A person stopped the whole table.
        raise
    except RunFailed as error:
        failed = error.what
    attack, scenario = trial.attack, plan.recipe.scenario
    return {
        "strategy": trial.strategy,
        "trigger": None if attack is None else attack.trigger,
        "poisoned": None if attack is None else attack.poisoned,
        "top1": None if failed else judged.top1,
        "success": judged.success,
        "failed": failed,
        **count_replies(plan.out, 1 if scenario is None else scenario.first_round),
    }


def _line(entry: Entry) -> str:
    where = f"{counted(entry['sites'], 'site')}, seed {entry['seed']}, {entry['strategy']}"
    if entry["failed"] is not None:
        return f"{where}: failed. {entry['failed']}"
    if entry["trigger"] is not None and not entry["struck"]:
        return f"{where}: no hostile site answered, so this was no attack."
    shown = ", ".join(
        f"{trigger} {100 * share:.1f} %" for trigger, share in entry["success"].items()
    )
    kind = "control" if entry["trigger"] is None else "attack success"
    return f"{where}: top-1 {100 * entry['top1']:.1f} %, {kind}: {shown}"


@dataclass(frozen=True)
class BackdoorScores:
    """Scores of a run's best model on the test split.

    Attributes:
        top1: Accuracy on unmodified pictures.
        success: Trigger -> share of the pictures of other classes that are classified as the target
            when they carry the trigger. Without an attack, this is the control.
    """

    top1: float
    success: dict[Trigger, float]


def judge_backdoors(
    out: Path, test: ExampleTable, cache: Path, triggers: tuple[Trigger, ...]
) -> BackdoorScores:
    """Score the best model of an ended run, with and without triggers.

    Args:
        out: The run's folder.
        test: The test split; pictures of the target class are left out of ``success``.
        cache: Folder for decoded pictures and features.
        triggers: Triggers to test.
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
    return BackdoorScores(scored.top1, success)


def _with_trigger(learner: Learner, test: ExampleTable, cache: Path, trigger: Trigger) -> Examples:
    if learner.frozen_backbone:
        features_ND = triggered_features(learner, test, cache, trigger)
        return FeatureExamples(features_ND, test.labels_N)
    examples = learner.picture_examples(test, cache)
    return Triggered(examples, np.ones(len(test), dtype=np.bool_), trigger)
