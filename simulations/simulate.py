"""One simulated run from a recipe to its report."""

import json
import shutil
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fgvc_core.data.cache import cache_folder
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import ConfigurationError, DataError, PolicyRefusal
from fgvc_core.experiment import completed
from fgvc_core.files import private_folder, replace_json, write_privately
from fgvc_core.inference.validation_split import simulated_split_key
from fgvc_core.protocol.keys import new_key, public_text, write_private
from fgvc_core.recipe import Recipe, differences
from fgvc_core.training.baseline import pixel_baseline
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site
from fieldmark.server.home import CoordinatorHome, ServerSettings, write_home
from fieldmark.server.report import render
from fieldmark.simulations.engines import POLL_S, ROLL_CALL_S, Engine, run_inprocess, run_ray
from fieldmark.simulations.preparation import (
    Setting,
    Tell,
    deal,
    prepare,
    write_partition,
)
from fieldmark.simulations.private_sites import extract_ledgers, public_units, simulated_policy
from fieldmark.simulations.superlink import run_superlink
from fieldmark.simulations.unit_price import unit_price
from fieldmark.simulations.workers import available_cores, hired


@dataclass(frozen=True)
class Plan:
    """What is to be simulated, and where."""

    recipe: Recipe
    out: Path
    engine: Engine = "inprocess"
    sites: Path | None = None
    resume: bool = False
    quiet: bool = False
    track: tuple[str, ...] = ()


def simulate(plan: Plan, tell: Tell = lambda done, total: None) -> dict[str, Any]:
    """Simulate a federation.

    Args:
        plan: Recipe, folder, engine.
        tell: Told how many pictures are prepared.

    Returns:
        The run's metrics, as ``metrics.json`` holds them.

    Raises:
        FieldmarkError: with the exit code that says why it did not end well.
    """
    workers = len(available_cores())
    with hired(workers) as pool:
        return run_with(plan, pool, workers, tell)


def run_with(plan: Plan, pool: Executor, workers: int, tell: Tell) -> dict[str, Any]:
    """Simulate on a pool of workers that is there already."""
    check_out(plan)
    cache = cache_folder()
    setting = deal(plan.recipe, cache)
    plan = replace(plan, recipe=completed(plan.recipe, setting.table))
    prepare(plan.recipe, setting, pool, tell)
    if plan.resume:
        check_same(plan)
        rejoin(plan, setting)
    else:
        lay_out(plan, setting)
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
        # The run's page says which sites refused, and why.
        render(plan.out)
        raise
    finally:
        if plan.recipe.privacy is not None:
            extract_ledgers(plan.out, homes)
    price = unit_price(plan.recipe, setting) if plan.recipe.evaluate.unit_price else None
    return finish(plan, baseline, price)


def check_out(plan: Plan) -> None:
    """Refuse to write over a run, or to resume what is not there.

    Raises:
        ConfigurationError: in either case; nothing was touched.
    """
    if plan.resume and not (plan.out / "recipe.toml").is_file():
        raise ConfigurationError(
            f"There is no run in '{plan.out}' to go on with.",
            remedy="Leave out --resume to start it, or name the run's folder with --out.",
        )
    if not plan.resume and plan.out.exists():
        raise ConfigurationError(
            f"The output folder '{plan.out}' exists already.",
            why="A run's folder is never overwritten.",
            remedy="Go on with that run (--resume), or name another folder (--out).",
        )


def check_same(plan: Plan) -> None:
    """Refuse to resume with another recipe, naming what differs.

    Raises:
        ConfigurationError: if the recipes differ.
    """
    before = CoordinatorHome.open(plan.out).recipe
    if before.digest == plan.recipe.digest:
        return
    differing = differences(before, plan.recipe)
    raise ConfigurationError(
        f"The run in '{plan.out}' has another recipe: {'; '.join(differing[:5])}.",
        why="Going on would mix two experiments.",
        remedy="Resume with the recipe it was started with, or start a new run (--out).",
    )


def lay_out(plan: Plan, setting: Setting) -> None:
    """Make the run's folder, the coordinator's files and the sites' homes.

    All or nothing: what was made is removed again if any of it fails.

    Raises:
        ConfigurationError: if the folder cannot be made.
        DataError: if a home kept with ``--sites`` belongs to other data.
    """
    homes = site_homes(plan, setting)
    kept = [home for home in homes if home.exists()]
    for home in kept:
        _check_kept(plan, home)
    try:
        plan.out.mkdir(parents=True)
    except OSError as error:
        raise ConfigurationError(
            f"The output folder '{plan.out}' cannot be made: {error}.",
            remedy="Name a folder that you may write to (--out).",
        ) from None
    try:
        private_folder(plan.out / "coordinator")
        key = new_key()
        write_private(key, plan.out / "coordinator" / "key")
        sites = {
            site: _home(plan, setting, site, public_text(key.public_key())).public_key
            for site in setting.rows
        }
        settings = ServerSettings(
            cache=str(setting.cache),
            data_path=plan.recipe.data.path,
            engine=plan.engine,
            roll_call_s=ROLL_CALL_S[plan.engine],
            poll_s=POLL_S[plan.engine],
            track=plan.track,
        )
        write_home(plan.out, plan.recipe, setting.table.class_names, sites, settings)
        private = plan.recipe.privacy is not None
        write_partition(setting, plan.out / "partition.json", private=private)
    except BaseException:
        for made in (plan.out, *(home for home in homes if home not in kept)):
            shutil.rmtree(made, ignore_errors=True)
        raise


def rejoin(plan: Plan, setting: Setting) -> None:
    """Bring the homes of a run back to it: another run may have used them since.

    Raises:
        ConfigurationError: if one is not there.
    """
    coordinator = public_text(CoordinatorHome.open(plan.out).key.public_key())
    for home in site_homes(plan, setting):
        if not (home / "site.toml").is_file():
            raise ConfigurationError(
                f"The run in '{plan.out}' has no site's home at '{home}'.",
                remedy="Name the folder of homes that it was started with (--sites).",
            )
        _assign(home, setting, coordinator)


def site_homes(plan: Plan, setting: Setting) -> list[Path]:
    """The sites' homes in order of names."""
    root = plan.sites or plan.out / "sites"
    return [root / site for site in sorted(setting.rows)]


def start_baseline(
    recipe: Recipe, setting: Setting, pool: Executor
) -> "Future[dict[str, float]] | None":
    """Fit the linear model on raw pixels beside the run, where the recipe asks for it."""
    if not recipe.evaluate.pixel_baseline:
        return None
    train = setting.table.where("train")
    test = setting.table.where("test")
    return pool.submit(_baseline, train, test, recipe.data.image_size)


def finish(
    plan: Plan, baseline: "Future[dict[str, float]] | None", price: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Add what was measured beside the run to its metrics and make the report."""
    path = plan.out / "metrics.json"
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if price is not None:
        metrics["unit_price"] = price
    metrics["pixel_baseline"] = baseline.result() if baseline is not None else None
    replace_json(path, metrics)
    render(plan.out)
    return metrics


def next_free(folder: Path) -> Path:
    """The folder, or the first of ``folder-2``, ``folder-3``... that is free."""
    number, candidate = 1, folder
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def latest(folder: Path) -> Path:
    """The last of the folders that :func:`next_free` has given out."""
    number, candidate = 1, folder
    while True:
        number += 1
        following = folder.with_name(f"{folder.name}-{number}")
        if not following.exists():
            return candidate
        candidate = following


def _home(plan: Plan, setting: Setting, site: str, coordinator: str) -> Site:
    """A fresh home, or the one that ``--sites`` kept from an earlier run."""
    home = (plan.sites or plan.out / "sites") / site
    if home.exists():
        # The site stays itself (key, books); only the coordinator of this run is new.
        _assign(home, setting, coordinator)
        return Site.open(home)
    make_home(
        home,
        name=site,
        coordinator=coordinator,
        cache=setting.cache,
        data_path=plan.recipe.data.path,
        split_key=simulated_split_key(plan.recipe, site),
        units=public_units(plan.recipe, setting),
        policy=simulated_policy(plan.recipe),
        simulated=True,
    )
    _assign(home, setting, coordinator)
    return Site.open(home)


def _assign(home: Path, setting: Setting, coordinator: str) -> None:
    rows = setting.rows[home.name].tolist()
    write_privately(home / "coordinator.pub", coordinator + "\n")
    write_privately(home / "rows.json", json.dumps(rows))
    pool = setting.pool[home.name].tolist() if setting.pool else []
    write_privately(home / "pool.json", json.dumps(pool))


def _check_kept(plan: Plan, home: Path) -> None:
    path = Site.open(home).settings.data.path
    if path != plan.recipe.data.path:
        raise DataError(
            f"The home '{home}' belongs to data at '{path}', "
            f"the recipe names '{plan.recipe.data.path}'.",
            why="A site's books belong to its data.",
            remedy="Name another folder with --sites, or the data it was made for.",
        )


def _baseline(train: ExampleTable, test: ExampleTable, image_size: int) -> dict[str, float]:
    scored = pixel_baseline(train, test, image_size)
    return {"top1": scored.top1, "macro_f1": scored.macro_f1}
