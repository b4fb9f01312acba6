"""One simulated run from a recipe to its report."""

import json
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from fgvc_core.data.cache import cache_folder
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.experiment import completed
from fgvc_core.files import private_folder, replace_json
from fgvc_core.recipe import Recipe
from fgvc_core.training.baselines import pixel_baseline
from fieldmark.server.report.page import render
from fieldmark.simulations.engines import run_inprocess, run_ray
from fieldmark.simulations.folders import (
    check_out,
    check_same,
    extract_ledgers,
    lay_out,
    rejoin,
    site_homes,
)
from fieldmark.simulations.own_heads import own_heads
from fieldmark.simulations.planning import Say, Simulation, held, released
from fieldmark.simulations.preparation import Setting, Tell, deal, prepare
from fieldmark.simulations.superlink import run_superlink
from fieldmark.simulations.unit_price import unit_price
from fieldmark.simulations.workers import available_cores, hired


def simulate(
    plan: Simulation, tell: Tell = lambda done, total: None, say: Say = lambda line: None
) -> dict[str, Any]:
    """Simulate a federation, or each trial of a recipe with a table of trials.

    Args:
        plan: Recipe, folder, engine.
        tell: Called with the number of prepared pictures.
        say: Called after each trial.

    Returns:
        The run's metrics, as in ``metrics.json``.

    Raises:
        FieldmarkError: if the run failed, with its exit code.
    """
    scenario = plan.recipe.scenario
    if scenario is not None and (scenario.turns or scenario.backdoors is not None):
        if plan.engine != "inprocess" or plan.resume:
            raise ConfigurationError(
                "A table of trials (scenario.turns, scenario.backdoors) is simulated in process "
                "and from the beginning.",
                remedy="Leave out --engine and --resume, or name one scenario.attack instead.",
            )
        # Imported here: an ordinary run needs neither attackers nor tables.
        from fieldmark.simulations.backdoor_trials import run_backdoors
        from fieldmark.simulations.trials import run_trials

        with released(plan):
            return (run_trials if scenario.turns else run_backdoors)(plan, tell, say)
    workers = len(available_cores())
    with hired(workers) as pool:
        return run_with(plan, pool, workers, tell)


def run_with(plan: Simulation, pool: Executor, workers: int, tell: Tell) -> dict[str, Any]:
    """Simulate on an existing pool of workers.

    Raises:
        FieldmarkError: if the run failed, with its exit code.
    """
    return run_dealt(plan, None, pool, workers, tell)


def run_dealt(
    plan: Simulation, setting: Setting | None, pool: Executor, workers: int, tell: Tell
) -> dict[str, Any]:
    """Simulate a federation whose pictures are distributed already; None: distribute them.

    Raises:
        FieldmarkError: if the run failed, with its exit code.
    """
    check_out(plan)
    with released(plan), ExitStack() as locks:
        if plan.resume:
            locks.enter_context(held(plan.out, "run"))
        if plan.sites is not None:
            private_folder(plan.sites)
            locks.enter_context(held(plan.sites, "sites"))
        setting = setting or deal(plan.recipe, cache_folder())
        recipe = completed(plan.recipe, setting.table).with_sites(len(setting.rows))
        plan = replace(plan, recipe=recipe)
        prepare(plan.recipe, setting, pool, tell)
        if plan.resume:
            check_same(plan)
            rejoin(plan, setting)
        else:
            lay_out(plan, setting)
            locks.enter_context(held(plan.out, "run"))
        return _carried_out(plan, setting, pool, workers)


def _carried_out(
    plan: Simulation, setting: Setting, pool: Executor, workers: int
) -> dict[str, Any]:
    homes = site_homes(plan, setting)
    baseline = start_baseline(plan.recipe, setting, pool)
    try:
        if plan.engine == "ray":
            run_ray(plan.out, homes, workers)
        elif plan.engine == "superlink":
            run_superlink(plan.out, homes)
        else:
            run_inprocess(plan.out, homes, pool, workers, quiet=plan.quiet)
    except PolicyRefusal:
        # Even a failed run gets a report, which says which sites refused, and why.
        render(plan.out)
        raise
    finally:
        if plan.recipe.privacy is not None:
            extract_ledgers(plan.out, homes)
    price = unit_price(plan.recipe, setting) if plan.recipe.evaluate.unit_price else None
    metrics = finish(plan, baseline, price)
    if plan.recipe.personal.method == "own-sums":
        # Not in metrics.json: own heads, and what they score, are internal to the sites.
        metrics["own_heads"] = own_heads(plan, setting, homes)
    return metrics


def start_baseline(
    recipe: Recipe, setting: Setting, pool: Executor
) -> "Future[dict[str, float]] | None":
    """Start fitting the linear pixel baseline in parallel with the run, if the recipe has it."""
    if not recipe.evaluate.pixel_baseline:
        return None
    train = setting.table.where("train")
    test = setting.table.where("test")
    return pool.submit(_baseline, train, test, recipe.data.image_size)


def finish(
    plan: Simulation,
    baseline: "Future[dict[str, float]] | None",
    price: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Add the side measurements to the run's metrics and write the report."""
    path = plan.out / "metrics.json"
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if price is not None:
        metrics["unit_price"] = price
    metrics["pixel_baseline"] = baseline.result() if baseline is not None else None
    replace_json(path, metrics)
    render(plan.out)
    return metrics


def _baseline(train: ExampleTable, test: ExampleTable, image_size: int) -> dict[str, float]:
    scored = pixel_baseline(train, test, image_size)
    return {"top1": scored.top1, "macro_f1": scored.macro_f1}
