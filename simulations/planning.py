"""The plan of a simulation: recipe, folder, engine and trackers, checked before heavy imports."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from fgvc_core.errors import ConfigurationError, nearest
from fgvc_core.files import FILE_MODE
from fgvc_core.recipe import Recipe
from fieldmark.server.tracking.choices import check_installed, read_track, settled

if TYPE_CHECKING:
    from fieldmark.simulations.engines import Engine

Say = Callable[[str], None]
"""Called with one line after each trial."""


@dataclass(frozen=True)
class Simulation:
    """The plan of one simulation.

    Attributes:
        recipe: The experiment.
        out: The run's folder, new unless ``resume``.
        engine: How messages are carried: inprocess, ray or superlink.
        sites: Folder that keeps the sites' homes between runs; None: inside the run's folder.
        resume: Whether to continue a stopped run.
        quiet: Whether to suppress terminal output.
        track: Additional destinations of events, ``NAME=WHERE`` each.
        reserved: Whether ``out`` was made, empty, for this run; see :func:`reserve`.
    """

    recipe: Recipe
    out: Path
    engine: "Engine" = "inprocess"
    sites: Path | None = None
    resume: bool = False
    quiet: bool = False
    track: tuple[str, ...] = ()
    reserved: bool = False


def planned(
    recipe: Recipe,
    out: Path | None = None,
    engine: str = "inprocess",
    sites: Path | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
) -> Simulation:
    """Plan a simulation; the arguments are :class:`Simulation`'s.

    Args:
        out: None: ``runs/NAME``, or ``runs/NAME-2``... if that is taken, which is made here; with
            ``resume`` the last of these.

    Raises:
        ConfigurationError: for an unknown engine or tracker, or if no folder can be made.
    """
    tracked = tracked_at(track)
    # The workers' imports take as long as ours, so they start now.
    from fieldmark.simulations import workers

    workers.context()
    from fieldmark.simulations.engines import ENGINES

    if engine not in ENGINES:
        raise ConfigurationError(
            f"--engine '{engine}' is not one of {', '.join(ENGINES)}.",
            remedy=nearest(engine, ENGINES),
        )
    default = Path("runs") / recipe.name
    if out is None and not resume:
        folder = reserve(default)
        return Simulation(recipe, folder, engine, sites, track=tracked, reserved=True)
    return Simulation(recipe, out or latest(default), engine, sites, resume, track=tracked)


def tracked_at(texts: Sequence[str]) -> tuple[str, ...]:
    """The trackers of ``--track``, checked, with absolute paths."""
    choices = read_track(texts)
    check_installed(choices)
    return settled(choices, Path.cwd())


def reserve(folder: Path) -> Path:
    """Make the folder, or the first of ``folder-2``, ``folder-3``... that does not exist.

    Looking and making are one step, so that two processes never get the same folder.

    Raises:
        ConfigurationError: if it cannot be made.
    """
    number, candidate = 1, folder
    while True:
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            number += 1
            candidate = folder.with_name(f"{folder.name}-{number}")
        except OSError as error:
            raise ConfigurationError(
                f"The output folder '{candidate}' cannot be made: {error}.",
                remedy="Name a folder that you may write to (--out).",
            ) from None


def latest(folder: Path) -> Path:
    """The last folder made by :func:`reserve` in which a run has begun."""
    number, candidate, found = 1, folder, folder
    while candidate.exists():
        if (candidate / "recipe.toml").is_file():
            found = candidate
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return found


@contextlib.contextmanager
def released(plan: Simulation) -> Iterator[None]:
    """Remove the reserved folder again if nothing was written into it."""
    try:
        yield
    finally:
        if plan.reserved:
            with contextlib.suppress(OSError):
                plan.out.rmdir()


@contextlib.contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Lock a folder for one process; the lock ends with the process.

    Args:
        folder: An existing folder.
        what: What it is, for instance "run".

    Raises:
        ConfigurationError: if another process holds it.
    """
    lock = FileLock(folder / ".lock", timeout=0, mode=FILE_MODE)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigurationError(
            f"Another process is working on the {what} in '{folder}'.",
            why="Two at once would overwrite each other's files.",
            remedy="Wait until it has ended, or name another folder.",
        ) from None
    try:
        yield
    finally:
        lock.release()
