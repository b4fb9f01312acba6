"""The plan of a simulation: recipe, folder, engine and trackers, checked before heavy imports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fgvc_core.errors import ConfigurationError, nearest
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
    """

    recipe: Recipe
    out: Path
    engine: "Engine" = "inprocess"
    sites: Path | None = None
    resume: bool = False
    quiet: bool = False
    track: tuple[str, ...] = ()


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
        out: None: ``runs/NAME``, or ``runs/NAME-2``... if that is taken; with ``resume`` the last
            of these.

    Raises:
        ConfigurationError: for an unknown engine or tracker.
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
    folder = out or (latest(default) if resume else next_free(default))
    return Simulation(recipe, folder, engine, sites, resume, track=tracked)


def tracked_at(texts: Sequence[str]) -> tuple[str, ...]:
    """The trackers of ``--track``, checked, with absolute paths."""
    choices = read_track(texts)
    check_installed(choices)
    return settled(choices, Path.cwd())


def next_free(folder: Path) -> Path:
    """The folder, or the first of ``folder-2``, ``folder-3``... that is free."""
    number, candidate = 1, folder
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def latest(folder: Path) -> Path:
    """The last existing folder of those that :func:`next_free` has returned."""
    number, candidate = 1, folder
    while True:
        number += 1
        following = folder.with_name(f"{folder.name}-{number}")
        if not following.exists():
            return candidate
        candidate = following
