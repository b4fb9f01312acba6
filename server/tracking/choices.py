"""What ``--track`` and ``track`` in ``server.toml`` may say: ``NAME`` or ``NAME=WHERE``.

It is no part of a recipe: a recipe is what the sites are asked to do, and its digest must not
depend on where somebody looks at curves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fgvc_core.components import TRACKERS
from fgvc_core.errors import ConfigurationError, nearest

PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
"""Tracker of Fieldmark -> the package that it needs, of the extra of the same name."""

FILES_ONLY = ("tensorboard", "wandb")
"""Trackers that write files here, and never to a server."""


@dataclass(frozen=True)
class Choice:
    """One tracker, and where it writes; "" is inside the run's folder."""

    name: str
    where: str = ""

    @property
    def is_address(self) -> bool:
        """Whether it names a server instead of a place on this machine."""
        return "://" in self.where

    def __str__(self) -> str:
        return f"{self.name}={self.where}" if self.where else self.name


def read_track(texts: Sequence[str]) -> tuple[Choice, ...]:
    """Read settings.

    Raises:
        ConfigurationError: if one names no tracker, or an address for one that has none.
    """
    choices = []
    for text in texts:
        name, _, where = text.partition("=")
        choice = Choice(name.strip(), where.strip())
        if choice.name not in TRACKERS.names():
            raise ConfigurationError(
                f"track '{text}' is none of {', '.join(TRACKERS.names())}.",
                why="Nothing was started.",
                remedy=nearest(choice.name, TRACKERS.names(), 1)
                or "For instance: --track tensorboard, or --track mlflow=runs/mlflow.db",
            )
        if choice.is_address and choice.name in FILES_ONLY:
            raise ConfigurationError(
                f"track '{text}' names an address.",
                why=f"{choice.name} is written to files here, and nowhere else.",
                remedy="Name a folder; Weights & Biases takes it up with 'wandb sync'.",
            )
        choices.append(choice)
    names = [choice.name for choice in choices]
    if len(set(names)) != len(names):
        raise ConfigurationError(
            f"track names {next(n for n in names if names.count(n) > 1)} twice.",
            remedy="Name each tracker once.",
        )
    return tuple(choices)


def check_installed(choices: Sequence[Choice]) -> None:
    """Refuse before a run what could only be warned of during it.

    Raises:
        ConfigurationError: if a tracker's package is not installed, or it cannot be loaded.
    """
    for choice in choices:
        if choice.name not in PACKAGES:
            # Of another distribution: it says itself what it lacks.
            TRACKERS.get(choice.name)
        elif find_spec(PACKAGES[choice.name]) is None:
            raise ConfigurationError(
                f"track '{choice.name}' needs a package that is not installed.",
                why="Nothing was started.",
                remedy=f"pip install 'fieldmark[{choice.name}]'",
            )


def settled(choices: Sequence[Choice], folder: Path) -> tuple[str, ...]:
    """The choices as text, each place as an absolute one.

    Args:
        choices: As they were asked for.
        folder: What relative places are relative to.
    """
    return tuple(
        str(Choice(c.name, c.where if c.is_address or not c.where else str(folder / c.where)))
        for c in choices
    )
