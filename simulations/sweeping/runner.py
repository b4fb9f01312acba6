"""Execution of a sweep's runs one by one; finished ones are kept, interrupted ones resumed.

Each run is an ordinary run's folder below ``runs/``, so it can be viewed, reported on, resumed or
compared by itself. A run is done if its folder says so; only failures are recorded separately, in
``failures.json``.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fgvc_core.data.cache import cache_folder
from fgvc_core.errors import ConfigurationError, DataError, FieldmarkError, RunInterrupted
from fgvc_core.experiment import make_table
from fgvc_core.files import replace_json
from fgvc_core.recipe import differences, filled_like, load_recipe
from fieldmark.simulations.planning import Simulation, held
from fieldmark.simulations.simulate import run_with
from fieldmark.simulations.sweeping.axes import Point
from fieldmark.simulations.sweeping.table import FAILURES, finished, read_failures, run_dir
from fieldmark.simulations.workers import available_cores, hired

Done = Callable[[Point, float], None]
"""Called with each ended run and its seconds; 0 if it was done before."""


def run_points(
    points: Sequence[Point],
    out: Path,
    *,
    retry: bool = False,
    track: tuple[str, ...] = (),
    done: Done = lambda p, s: None,
) -> None:
    """Run what is not done yet.

    Args:
        points: All runs of the sweep.
        out: The sweep's folder; new, or that of the same sweep.
        retry: Whether to retry failed runs.
        track: Trackers of every run's events.
        done: Called after each run.

    Raises:
        ConfigurationError: if the folder holds runs of another recipe, or another sweep is running
            in it.
        DataError: if the data are missing or invalid; no run was started.
        RunInterrupted: if a person stopped it.
    """
    _check(points, out)
    out.mkdir(parents=True, exist_ok=True)
    with held(out, "sweep"):
        _run_all(points, out, retry, track, done)


def _run_all(
    points: Sequence[Point], out: Path, retry: bool, track: tuple[str, ...], done: Done
) -> None:
    failures = read_failures(out)
    waiting = []
    for point in points:
        known = point.name in failures and not retry
        if known or finished(run_dir(out, point)) is not None:
            done(point, 0.0)
        else:
            waiting.append(point)
    while waiting:
        failed = _run_some(waiting, out, failures, track, done)
        waiting = waiting[waiting.index(failed) + 1 :] if failed else []


def _run_some(
    points: Sequence[Point],
    out: Path,
    failures: dict[str, dict[str, Any]],
    track: tuple[str, ...],
    done: Done,
) -> Point | None:
    """Run until one fails. Its workers may be dead, so the caller continues with new ones."""
    workers = len(available_cores())
    current = points[0]
    started = time.monotonic()
    try:
        with hired(workers) as pool:
            for current in points:
                started = time.monotonic()
                folder = run_dir(out, current)
                resume = _begun(folder)
                plan = Simulation(current.recipe, folder, resume=resume, quiet=True, track=track)
                run_with(plan, pool, workers, lambda n, total: None)
                if failures.pop(current.name, None) is not None:
                    replace_json(out / FAILURES, failures)
                done(current, time.monotonic() - started)
    except RunInterrupted as error:
        raise RunInterrupted(
            f"The sweep was stopped in '{current.name}'.",
            why=error.what,
            remedy="The same command goes on where it stopped.",
        ) from None
    except Exception as error:
        # One failed run must not stop the sweep.
        known = isinstance(error, FieldmarkError)
        failures[current.name] = {
            "what": str(error) if known else f"{type(error).__name__}: {error}",
            "exit_code": error.exit_code if isinstance(error, FieldmarkError) else 6,
        }
        replace_json(out / FAILURES, failures)
        done(current, time.monotonic() - started)
        return current
    return None


def _begun(folder: Path) -> bool:
    """Whether a run can be resumed; a folder that is incomplete is removed."""
    # This file is written last when a run's folder is created.
    if (folder / "partition.json").is_file():
        return True
    if folder.exists():
        shutil.rmtree(folder)
    return False


def _check(points: Sequence[Point], out: Path) -> None:
    """Check the folder and the data before anything runs."""
    if out.exists() and not (out / "runs").is_dir() and any(out.iterdir()):
        raise ConfigurationError(
            f"'{out}' holds something else than a sweep.",
            why="Nothing is ever written over.",
            remedy="Name another folder (--out).",
        )
    for point in points:
        path = run_dir(out, point) / "recipe.toml"
        if not path.is_file():
            continue
        before = load_recipe(path)
        recipe = filled_like(point.recipe, before)
        changed = differences(before, recipe)
        if before.data.path != recipe.data.path:
            changed.append("data.path differs")
        if changed:
            raise ConfigurationError(
                f"'{out}' holds runs of another recipe: {'; '.join(changed[:5])}.",
                why="A table of two experiments would compare nothing.",
                remedy="Sweep with the recipe it was started with, or name another folder (--out).",
            )
    seen = set()
    for point in points:
        data = point.recipe.data.model_dump_json()
        if data not in seen:
            seen.add(data)
            if not len(make_table(point.recipe, cache_folder()).where("train")):
                raise DataError(
                    "The data set has no training pictures.",
                    remedy="Look at it: fieldmark data check",
                )
