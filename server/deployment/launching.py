"""Preparation of a run's folder at the coordinator, and requests to resume or stop a run."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from fgvc_core.data.cache import cache_folder
from fgvc_core.errors import ConfigurationError, nearest
from fgvc_core.experiment import make_table
from fgvc_core.files import private_folder
from fgvc_core.models.weight_names import WEIGHTS, kind_of, resolve_weights
from fgvc_core.models.weights import add_weights
from fgvc_core.recipe import Recipe
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.run_request import (
    RunRequest,
    active_run,
    check_idle,
    read_run_request,
    write_run_request,
)
from fieldmark.server.deployment.settings import DeploymentSettings, read_settings
from fieldmark.server.home import CoordinatorHome, RollCallSettings, ServerSettings, write_home
from fieldmark.server.tracking import check_installed, read_track, settled

POLL_S = 0.25
"""Interval between polls for a reply, in seconds."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}")


def launch(
    folder: Path, recipe: Recipe, name: str = "", track: tuple[str, ...] | None = None
) -> Path:
    """Request a run.

    Args:
        folder: The coordinator's.
        recipe: The recipe. If ``model.weights`` is a path, the file is copied into this folder's
            ``weights/``, and sites get its digest.
        name: Of the run's folder; by default the recipe's, with a number if that is taken.
        track: Trackers of its events; by default those of ``server.toml``.

    Returns:
        The run's folder. The conductor of ``server up`` starts the run.

    Raises:
        ConfigurationError: if the coordinator is not up, another run is active, no site is
            registered, the classes are unknown, or the recipe's weights are missing.
        DataError: if the coordinator's own data are invalid.
    """
    folder = folder.resolve()
    settings = read_settings(folder)
    check_idle(folder)
    if track is None:
        choices = read_track(settings.track)
        check_installed(choices)
        track = settled(choices, folder)
    sites = {name: entry.public_key for name, entry in AllowList(folder).active().items()}
    if not sites:
        raise ConfigurationError(
            "No site is registered.", remedy=f"fieldmark server add-site {folder} NAME"
        )
    sites = asked_sites(sites, recipe)
    recipe = recipe.with_sites(len(sites))
    recipe = _named_weights(recipe, folder)
    recipe, class_names, test = _own_data(recipe, settings)
    run_dir = _folder_of(folder, name or recipe.name, free=not name)
    _make_folder(folder, run_dir)
    server = ServerSettings(
        cache=settings.cache or str(cache_folder()),
        data_path=recipe.data.path,
        weights=str(folder / WEIGHTS),
        engine="superlink",
        test=test,
        wait_for_sites_s=settings.wait_for_sites_s,
        wait_for_approval_s=settings.wait_for_approval_s,
        poll_s=POLL_S,
        track=track,
        **{name: getattr(settings, name) for name in RollCallSettings.model_fields},
    )
    write_home(run_dir, recipe, class_names, sites, server)
    write_run_request(run_dir, RunRequest(state="wanted"))
    return run_dir


def _make_folder(folder: Path, run_dir: Path) -> None:
    """Make a run's folder, with a link to the coordinator's key.

    Raises:
        ConfigurationError: if there is such a run already.
    """
    try:
        run_dir.mkdir(mode=0o700)
    except FileExistsError:
        raise ConfigurationError(
            f"There is a run '{run_dir.name}' already.",
            remedy=f"Go on with it (fieldmark server resume {folder} {run_dir.name}), "
            "or give another --name.",
        ) from None
    own = run_dir / "coordinator"
    private_folder(own)
    # A link, not a copy: the key has one place, where it is protected and rotated.
    os.symlink(Path("..") / ".." / ".." / "coordinator.key", own / "key")


def asked_sites(registered: Mapping[str, str], recipe: Recipe) -> dict[str, str]:
    """Name -> public key of the registered sites that a run asks to take part.

    Raises:
        ConfigurationError: if ``federation.sites`` names one that is not registered.
    """
    wanted = recipe.federation.sites
    for name in wanted:
        if name not in registered:
            raise ConfigurationError(
                f"federation.sites: '{name}' is no registered site.",
                why="It would be waited for in vain.",
                remedy=nearest(name, registered),
            )
    return {name: key for name, key in registered.items() if not wanted or name in wanted}


def resume(folder: Path, name: str) -> Path:
    """Request that an ended run be resumed from its last checkpoint.

    Raises:
        ConfigurationError: if there is no such run, or it or another one is active.
    """
    folder = folder.resolve()
    check_idle(folder)
    run_dir = _folder_of(folder, name, free=False)
    if not run_dir.is_dir():
        known = sorted(path.name for path in (folder / "runs").glob("*") if path.is_dir())
        raise ConfigurationError(
            f"There is no run '{name}'.",
            remedy=nearest(name, known) or f"Runs there: {', '.join(known) or 'none'}.",
        )
    CoordinatorHome.open(run_dir)
    write_run_request(run_dir, read_run_request(run_dir).but(state="wanted", stuck=0, why=""))
    return run_dir


def stop_run(folder: Path) -> Path | None:
    """Request that the active run be stopped; its last checkpoint stays intact.

    Raises:
        ConfigurationError: if it is not a coordinator's folder. In a wrong one no run is on, and
            the run that was meant would go on.
    """
    read_settings(folder)
    run_dir = active_run(folder.resolve())
    if run_dir is not None:
        write_run_request(run_dir, read_run_request(run_dir).but(state="stopping"))
    return run_dir


def _own_data(recipe: Recipe, settings: DeploymentSettings) -> tuple[Recipe, tuple[str, ...], bool]:
    """The recipe with the coordinator's data path, the classes, and whether a test split exists."""
    path = recipe.data.path or settings.data_path
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": path})})
    if path is None and recipe.data.name != "fieldmarks":
        if recipe.data.classes is None:
            raise ConfigurationError(
                "The recipe names no classes, and the coordinator has no data to read them from.",
                why="Every site has to mean the same by a label.",
                remedy="List them in the recipe's data.classes, or set data_path in server.toml.",
            )
        return recipe, recipe.data.classes, False
    cache = Path(settings.cache) if settings.cache else cache_folder()
    table = make_table(recipe, cache)
    return recipe, table.class_names, bool(len(table.where("test")))


def _named_weights(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with weights that every site can find: a path becomes the file's digest."""
    weights, kept = recipe.model.weights, folder / WEIGHTS
    if kind_of(weights) != "path":
        resolve_weights(weights, [kept])
        return recipe
    # Not model_copy, which would also copy the cached digest of the old recipe.
    values = recipe.model_dump(mode="json", exclude_none=True)
    values["model"]["weights"] = add_weights(Path(weights), kept)
    return Recipe.read(values)


def _folder_of(folder: Path, name: str, *, free: bool) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"'{name[:80]}' cannot be a run's name.",
            remedy="Use letters, digits, dots, underscores and hyphens.",
        )
    run_dir, number = folder / "runs" / name, 1
    while free and run_dir.exists():
        number += 1
        run_dir = folder / "runs" / f"{name}-{number}"
    return run_dir
