"""Writes a recipe with a comment above every setting."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from fgvc_core.errors import ConfigurationError
from fgvc_core.recipe import Recipe, parse_recipe
from fgvc_core.words import visible
from fieldmark.simulations.beginning.choosing import Choice

FILE = "recipe.toml"

_WIDTH = 96
_ORDER = ("", "data", "partition", "model", "train", "federation", "privacy", "evaluate")


def recipe_text(choices: Sequence[Choice], head: Sequence[str]) -> str:
    """The choices as TOML, each below a comment that gives its reason.

    Args:
        choices: The settings, in any order of sections.
        head: Lines of the comment at the top.
    """
    lines = [line for sentence in head for line in _comment(sentence)]
    for section in _ORDER:
        chosen = [choice for choice in choices if choice.section == section]
        if chosen and section:
            lines += ["", f"[{section}]"]
        for choice in chosen:
            lines += [*_comment(choice.why), tomli_w.dumps({choice.key: choice.value}).strip()]
    return "\n".join(lines) + "\n"


def refuse_taken(folder: Path) -> None:
    """Refuse a folder that has a recipe, or that cannot be written, before any work is done.

    Raises:
        ConfigurationError: if so.
    """
    path = folder / FILE
    if path.exists():
        raise _taken(path)
    above = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise _unwritable(path, f"'{above}' takes no files")


def write_recipe(folder: Path, text: str) -> tuple[Path, Recipe]:
    """Write ``recipe.toml`` into a folder that has none, after reading it as a run would.

    Raises:
        ConfigurationError: if there is one already, or the folder cannot be written.
    """
    path = folder / FILE
    recipe = parse_recipe(text, where=str(path))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise _taken(path) from None
    except OSError as error:
        raise _unwritable(path, str(error.strerror)) from None
    return path, recipe


def _taken(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"There is a '{path}' already.",
        why="A recipe that somebody may have edited is never overwritten.",
        remedy="Name another folder, or move that file away.",
    )


def _unwritable(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"'{path}' cannot be written: {why}.", remedy="Name a folder that you may write to."
    )


def _comment(text: str) -> list[str]:
    if not text:
        return ["#"]
    return [f"# {line}" for line in textwrap.wrap(visible(text), _WIDTH, break_on_hyphens=False)]
