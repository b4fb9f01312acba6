"""Trials of attacks: the same federation without faults, then under each attack with each defense.

The run's own folder holds the run without faults; ``trials/ATTACK-STRATEGY`` holds each of the
others, with the events that name every refused reply. For comparison there is FedAvg without any
defense: no screening, every claim accepted.
"""

import json
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from fgvc_core.data.cache import cache_folder
from fgvc_core.errors import RunFailed, RunInterrupted
from fgvc_core.experiment import completed
from fgvc_core.files import replace_json
from fgvc_core.recipe import Recipe
from fgvc_core.scenario import Attack, ScenarioSettings
from fieldmark.server.report.page import render
from fieldmark.simulations.engines import run_inprocess
from fieldmark.simulations.folders import check_out, lay_out, site_homes
from fieldmark.simulations.planning import Say, Simulation
from fieldmark.simulations.preparation import Setting, Tell, deal, prepare
from fieldmark.simulations.workers import available_cores, hired

UNGUARDED = "fedavg-unguarded"


def run_trials(
    plan: Simulation, tell: Tell = lambda done, total: None, say: Say = lambda line: None
) -> dict[str, Any]:
    """Simulate every attack of a recipe's scenario in turn.

    Args:
        plan: Its recipe has ``scenario.turns``.
        tell: Called with the number of prepared pictures.
        say: Called after each trial.

    Returns:
        The metrics of the run without faults, with ``trials``: one entry per attack and strategy,
        ``top1`` None if the run failed; ``none`` is the strategy without faults.
    """
    scenario = plan.recipe.scenario
    assert scenario is not None
    check_out(plan)
    workers = len(available_cores())
    setting = deal(plan.recipe, cache_folder())
    plan = replace(plan, recipe=completed(plan.recipe, setting.table))
    with hired(workers) as pool:
        prepare(plan.recipe, setting, pool, tell)
        clean = replace(plan, recipe=without_faults(plan.recipe))
        metrics = read_metrics(_run(clean, setting, pool, workers))
        top1 = f"{100 * metrics['top1']:.1f} %"
        say(f"without faults, {clean.recipe.federation.strategy}: top-1 {top1}")
        trials = []
        for strategy in scenario.defences:
            # A defense itself costs accuracy, so each one needs its own result without faults.
            changed = {
                "federation": plan.recipe.federation.model_copy(update={"strategy": strategy})
            }
            recipe = without_faults(plan.recipe).model_copy(update=changed)
            trial = replace(plan, recipe=recipe, out=plan.out / "trials" / f"none-{strategy}")
            trials.append(_trial("none", strategy, trial, setting, pool, workers))
            say(_told(trials[-1]))
        for attack in scenario.turns:
            for name, recipe in contenders(plan.recipe, attack):
                out = plan.out / "trials" / f"{attack}-{name}"
                trial = replace(plan, recipe=recipe, out=out, sites=None)
                trials.append(_trial(attack, name, trial, setting, pool, workers))
                say(_told(trials[-1]))
    metrics["trials"] = trials
    metrics["pixel_baseline"] = None
    replace_json(plan.out / "metrics.json", metrics)
    render(plan.out)
    return metrics


def without_faults(recipe: Recipe) -> Recipe:
    """The recipe without faults and attacks."""
    return recipe.model_copy(update={"scenario": None})


def contenders(recipe: Recipe, attack: Attack) -> list[tuple[str, Recipe]]:
    """(name, recipe) of each defense under an attack, and of FedAvg without any defense."""
    turns = recipe.scenario
    assert turns is not None
    now = turns.model_copy(update={"attack": attack, "turns": ()})
    # Validated again, to refuse invalid combinations.
    scenario = ScenarioSettings.read(now.model_dump(), "scenario")
    federation = recipe.federation
    found: dict[str, Any] = {
        strategy: federation.model_copy(update={"strategy": strategy})
        for strategy in turns.defences
    }
    found[UNGUARDED] = federation.model_copy(
        update={
            "strategy": "fedavg",
            "screening": False,
            "set_aside_after": 0,
            "max_weight": 10_000_000,
            "max_weight_share": 1.0,
        }
    )
    return [
        (name, recipe.model_copy(update={"federation": changed, "scenario": scenario}))
        for name, changed in found.items()
    ]


def _trial(
    attack: Attack, name: str, plan: Simulation, setting: Setting, pool: Executor, workers: int
) -> dict[str, Any]:
    entry: dict[str, Any] = {"attack": attack, "strategy": name, "top1": None, "failed": None}
    try:
        entry["top1"] = read_metrics(_run(plan, setting, pool, workers))["top1"]
    except RunInterrupted:
        # A person stopped the whole table.
        raise
    except RunFailed as error:
        entry["failed"] = error.what
    return {**entry, **count_replies(plan.out)}


def _run(plan: Simulation, setting: Setting, pool: Executor, workers: int) -> Path:
    lay_out(plan, setting)
    run_inprocess(plan.out, site_homes(plan, setting), pool, workers, quiet=True)
    return plan.out


def read_metrics(out: Path) -> dict[str, Any]:
    """Contents of a run's ``metrics.json``."""
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def count_replies(out: Path, first_round: int = 1) -> dict[str, int]:
    """Count the replies of hostile and of honest sites by outcome, from the run's events.

    Args:
        out: The run's folder.
        first_round: First round in which hostile sites attack.

    Returns:
        ``struck`` (replies of hostile sites from that round on, whatever their outcome),
        ``hostile_refused`` and ``hostile_accepted``, ``honest_refused`` (replies of honest sites
        that were refused, not counting missing ones), ``absent``, ``late``.
    """
    told = out / "scenario.json"
    text = told.read_text(encoding="utf-8") if told.exists() else '{"attackers": []}'
    hostile = set(json.loads(text)["attackers"])
    counts = dict.fromkeys(
        ("struck", "hostile_refused", "hostile_accepted", "honest_refused", "absent", "late"), 0
    )
    for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "late_reply":
            counts["late"] += 1
        if event["event"] != "reply" or event["kind"] != "train":
            continue
        came = event["accepted"] or not event["reason"].startswith("No reply within")
        counts["struck"] += came and event["site"] in hostile and event["round"] >= first_round
        if event["accepted"]:
            counts["hostile_accepted"] += event["site"] in hostile
        elif not came:
            counts["absent"] += 1
        else:
            counts["hostile_refused" if event["site"] in hostile else "honest_refused"] += 1
    return counts


def _told(trial: dict[str, Any]) -> str:
    top1 = "failed" if trial["top1"] is None else f"top-1 {100 * trial['top1']:.1f} %"
    return (
        f"{trial['attack']}, {trial['strategy']}: {top1}; "
        f"{trial['hostile_refused']} hostile replies refused, "
        f"{trial['hostile_accepted']} accepted, {trial['honest_refused']} honest ones refused"
    )
