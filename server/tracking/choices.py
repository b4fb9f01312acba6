"""Values of ``--track`` and of ``track`` in ``server.toml``: ``NAME`` or ``NAME=WHERE``.

They are not part of a recipe: its digest must not depend on where curves are displayed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fgvc_core.components import TRACKERS
from fgvc_core.errors import ConfigurationError, nearest

PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
"""Tracker -> the package that it needs, from the extra of the same name."""

FILES_ONLY = ("tensorboard", "wandb")
"""Trackers that write local files only, never to a server."""


@dataclass(frozen=True)
class Choice:
    """One tracker, and where it writes; "" is inside the run's folder."""

    name: str
    where: str = ""

    @property
    def is_address(self) -> bool:
        """Whether it is the address of a server, not a local path."""
        return "://" in self.where

    def __str__(self) -> str:
        return f"{self.name}={self.where}" if self.where else self.name


def read_track(texts: Sequence[str]) -> tuple[Choice, ...]:
    """Parse the settings.

    Raises:
        ConfigurationError: if a tracker is unknown, or cannot write to an address.
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
    """Check that the trackers can be loaded, before a run starts.

    Raises:
        ConfigurationError: if a tracker's package is not installed or cannot be loaded.
    """
    for choice in choices:
        if choice.name not in PACKAGES:
            # A tracker from another installed package reports its own missing dependencies.
            TRACKERS.get(choice.name)
        elif find_spec(PACKAGES[choice.name]) is None:
            raise ConfigurationError(
                f"track '{choice.name}' needs a package that is not installed.",
                why="Nothing was started.",
                remedy=f"pip install 'fieldmark[{choice.name}]'",
            )


def settled(choices: Sequence[Choice], folder: Path) -> tuple[str, ...]:
    """The choices as text, with absolute paths.

    Args:
        choices: As given by the user.
        folder: Base of relative paths.
    """
    return tuple(
        str(Choice(c.name, c.where if c.is_address or not c.where else str(folder / c.where)))
        for c in choices
    )
