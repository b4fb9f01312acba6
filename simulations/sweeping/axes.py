"""The axes of a sweep (``--over key=a,b,c``) and its points, each a recipe with a seed.

Every point's recipe is validated before anything runs, so an invalid key or value stops the sweep
at its start and not hours later.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fgvc_core.errors import ConfigurationError, FieldmarkError
from fgvc_core.recipe import Recipe, load_recipe

MOST_RUNS = 2000
"""More runs are usually a typing error."""


@dataclass(frozen=True)
class Axis:
    """One setting and its values, as TOML text."""

    key: str
    values: tuple[str, ...]

    @property
    def numbers(self) -> tuple[float, ...] | None:
        """The values as numbers, or None if one of them is not a number."""
        try:
            return tuple(float(value) for value in self.values)
        except ValueError:
            return None


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: Name of its folder: the settings and the seed.
        settings: Swept key -> value, as text.
        recipe: Resolved, with its seed.
    """

    name: str
    settings: dict[str, str]
    recipe: Recipe


def read_axis(text: str) -> Axis:
    """Read ``key=a,b,c``; a comma inside brackets or quotes belongs to its value.

    Raises:
        ConfigurationError: if it has another form, no value, or one value twice.

    >>> read_axis("partition.alpha=0.1,1").values
    ('0.1', '1')
    >>> read_axis("loss.weights=[1,2],[3]").values
    ('[1,2]', '[3]')
    """
    key, equals, rest = text.partition("=")
    key = key.strip()
    values = tuple(value.strip() for value in _split(rest))
    if not equals or not key or not all(values):
        raise ConfigurationError(
            f"--over '{text}' is not section.key=value,value,...",
            why="Nothing was started.",
            remedy="For instance: --over partition.alpha=0.1,1,10",
        )
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if twice:
        raise ConfigurationError(
            f"--over '{key}' has the value {twice[0]} twice.",
            why="One run would stand in two rows, and its deviation would be too small.",
            remedy="Give each value once; --seeds repeats every one of them.",
        )
    return Axis(key, values)


def read_axes(texts: Sequence[str]) -> tuple[Axis, ...]:
    """Parse every ``--over``.

    Raises:
        ConfigurationError: if there is none, a key is repeated, or it cannot be swept.
    """
    axes = tuple(map(read_axis, texts))
    keys = [axis.key for axis in axes]
    if not axes:
        raise ConfigurationError(
            "A sweep needs something to go over.",
            remedy="For instance: --over partition.alpha=0.1,1,10",
        )
    if len(set(keys)) != len(keys):
        raise ConfigurationError(
            f"--over names '{next(k for k in keys if keys.count(k) > 1)}' twice.",
            remedy="Give all of a key's values in one --over.",
        )
    for key, remedy in (
        ("seed", "Use --seeds N; the first seed is the recipe's, or --set seed=..."),
        ("name", "Runs are named after their settings."),
    ):
        if key in keys:
            raise ConfigurationError(f"--over {key}=... is not possible.", remedy=remedy)
    return axes


def plan_points(
    path: Path, overrides: Sequence[str], axes: Sequence[Axis], seeds: int
) -> tuple[Point, ...]:
    """All runs of the sweep: the product of the axes, each with every seed.

    Args:
        path: The recipe.
        overrides: ``--set`` of all runs.
        axes: What is swept; the last one varies fastest.
        seeds: How many; the recipe's and the ones after it.

    Raises:
        ConfigurationError: if a point's recipe is invalid, with the point's name; if there are too
            many points; or if two points are the same experiment.
    """
    # The recipe may be invalid without the swept settings.
    first = [f"{axis.key}={axis.values[0]}" for axis in axes]
    base = _read(path, [*overrides, *first], first)
    count = seeds
    for axis in axes:
        count *= len(axis.values)
    if count > MOST_RUNS:
        raise ConfigurationError(
            f"This sweep has {count:,} runs; at most {MOST_RUNS:,} are started at once.",
            remedy="Sweep over fewer values, or in several sweeps.",
        )
    points = []
    seen: dict[str, str] = {}
    for values in itertools.product(*(axis.values for axis in axes)):
        settings = {axis.key: value for axis, value in zip(axes, values, strict=True)}
        changes = [f"{key}={value}" for key, value in settings.items()]
        for seed in range(base.seed, base.seed + seeds):
            recipe = _read(path, [*overrides, *changes, f"seed={seed}"], changes)
            if recipe.scenario is not None and recipe.scenario.turns:
                raise ConfigurationError(
                    "scenario.turns is a table of runs already; a sweep runs each recipe once.",
                    remedy="Set scenario.turns=[] and sweep: --over scenario.attack=sign-flip,...",
                )
            name = "_".join([*map(_slug, changes), f"seed={seed}"])
            other = seen.setdefault(_identity(recipe), name)
            if other != name:
                raise ConfigurationError(
                    f"'{other}' and '{name}' are the same experiment.",
                    why="A run would count twice.",
                    remedy="Give each value once: 1 and 1.0 are one number.",
                )
            points.append(Point(name, settings, recipe))
    if len({point.name for point in points}) != len(points):
        raise ConfigurationError(
            "Two values make one folder's name.",
            remedy="Sweep over them in two sweeps.",
        )
    return tuple(points)


def _read(path: Path, overrides: list[str], changes: list[str]) -> Recipe:
    try:
        return load_recipe(path, overrides)
    except FieldmarkError as error:
        raise _at(error, changes) from None


def _at(error: FieldmarkError, changes: list[str]) -> FieldmarkError:
    return type(error)(
        f"At {', '.join(changes)}: {error.what}",
        why="No run of the sweep was started.",
        remedy=error.remedy,
    )


def _identity(recipe: Recipe) -> str:
    # The digest leaves out what sites are not told: a sweep may vary the partition and the path.
    return recipe.to_toml()


def _slug(change: str) -> str:
    key, _, value = change.partition("=")
    kept = re.sub(r"[^A-Za-z0-9.+-]+", "-", value).strip("-.") or "value"
    return f"{key.rpartition('.')[2]}={kept[:40]}"


def _split(text: str) -> list[str]:
    parts, depth, quote, start = [], 0, "", 0
    for at, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        elif sign == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]
