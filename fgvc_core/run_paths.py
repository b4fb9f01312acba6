"""What is said of a run that is not there: what was looked for, and the nearest run that is."""

import difflib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from fgvc_core.errors import ConfigurationError

RECIPE = "recipe.toml"
"""The file that every run's folder has."""

MOST = 2000
"""Entries of a folder that are looked at for runs, so that a large one costs no time."""


def no_run(path: Path, looked_for: Sequence[str], what: str = "run") -> ConfigurationError:
    """The error for a path at which a command found no run.

    Args:
        path: What a person has named.
        looked_for: Files of which one would have done, relative to the path.
        what: What is missing there: "run", "checkpoint".
    """
    files = " or ".join(f"'{path / name}'" for name in looked_for)
    why = f"Looked for {files}."
    near = nearest_run(path)
    if near is not None and _alike(path.name, [near.name]):
        remedy = f"Did you mean '{near}'?"
    elif near is not None:
        remedy = f"Name a run's folder; the latest here is '{near}'."
    elif path.exists():
        remedy = "Name a run's folder that holds it; a run that was stopped goes on with --resume."
    else:
        remedy = "Name a run's folder, for instance runs/demo; a relative path counts from here."
    return ConfigurationError(f"There is no {what} at '{path}'.", why=why, remedy=remedy)


def nearest_run(path: Path) -> Path | None:
    """The run whose folder's name is most like a wrong one's; without one alike, the latest.

    Looked for inside the path, beside it, and in ``runs`` of the current folder.
    """
    found = list(dict.fromkeys(each for folder in _near(path) for each in _runs_in(folder)))
    others = [each for each in found if each.resolve() != path.resolve()]
    named = {each.name: each for each in reversed(others)}
    alike = _alike(path.name, list(named))
    if alike:
        return named[alike[0]]
    return max(others, key=lambda each: (each / RECIPE).stat().st_mtime, default=None)


def _alike(name: str, names: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(name, names, n=1, cutoff=0.6)


def _near(path: Path) -> Iterator[Path]:
    yield from (path, path.parent, path.parent / "runs")
    yield Path("runs")


def _runs_in(folder: Path) -> Iterator[Path]:
    """Folders that a run has been in: those with a recipe and with checkpoints or metrics."""
    try:
        entries = sorted(islice(folder.iterdir(), MOST))
    except OSError:
        return
    for entry in entries:
        marks = ("checkpoints", "metrics.json")
        if (entry / RECIPE).is_file() and any((entry / mark).exists() for mark in marks):
            yield entry
