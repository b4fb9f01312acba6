"""Scores for each value of a column (sex, age band, site, camera), and the worst group."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgvc_core.errors import ConfigurationError, nearest
from fgvc_core.inference.intervals import FEWEST, Interval, by_subject, top1_of, top1_parts
from fgvc_core.inference.judging import Judged
from fgvc_core.training.examples import Evaluation

EMPTY = "(empty)"

_VALUES = 12
_BANDS = 6


@dataclass(frozen=True)
class Group:
    """The scores of one value of a column.

    Attributes:
        name: The value.
        examples: Number of pictures.
        subjects: Number of different subjects.
        top1: Top-1 accuracy with its interval.
        macro_f1: Macro F1 over the group's classes.
        enough: Whether it has at least ten subjects; smaller groups are shown but never called the
            worst.
    """

    name: str
    examples: int
    subjects: int
    top1: Interval
    macro_f1: float
    enough: bool

    def as_json(self) -> dict[str, Any]:
        """Values for JSON."""
        return {
            "name": self.name,
            "examples": self.examples,
            "subjects": self.subjects,
            "top1": self.top1.as_json(),
            "macro_f1": self.macro_f1,
            "enough": self.enough,
        }


@dataclass(frozen=True)
class Subgroups:
    """A column's groups, sorted by name."""

    column: str
    groups: tuple[Group, ...]

    @property
    def worst(self) -> Group | None:
        """Group with the lowest top-1 among those with enough subjects; None if fewer than two."""
        enough = [group for group in self.groups if group.enough]
        return min(enough, key=lambda group: group.top1.value) if len(enough) > 1 else None

    def as_json(self) -> dict[str, Any]:
        """Values for JSON."""
        worst = self.worst
        return {
            "column": self.column,
            "worst": None if worst is None else worst.name,
            "groups": [group.as_json() for group in self.groups],
        }


def subgroups(judged: Judged, column: str, draws: int, seed: int = 0) -> Subgroups:
    """Scores for each value of a column; many numeric values are grouped into bands.

    Raises:
        ConfigurationError: if the column does not exist.
    """
    if column not in judged.columns:
        known = sorted(judged.columns)
        raise ConfigurationError(
            f"--by {column}: the data have no such column.",
            why=f"They have: {', '.join(known) or 'none beside path and label'}.",
            remedy=nearest(column, known, 1) or "Name one of these.",
        )
    values = banded(judged.columns[column])
    order = {name: at for at, name in enumerate(sorted(set(values), key=_key))}
    right_N = judged.predicted_N == judged.labels_N
    classes = judged.logits_NK.shape[1]
    groups = []
    for name in order:
        at = np.array([i for i, value in enumerate(values) if value == name])
        subjects = [judged.subjects[i] for i in at.tolist()]
        cells = judged.labels_N[at] * classes + judged.predicted_N[at]
        counts = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
        different = len(set(subjects))
        groups.append(
            Group(
                name,
                len(at),
                different,
                by_subject(top1_parts(right_N[at]), subjects, top1_of, draws=draws, seed=seed),
                Evaluation(counts, 0.0).macro_f1,
                different >= FEWEST,
            )
        )
    return Subgroups(column, tuple(groups))


def banded(values: Sequence[str]) -> list[str]:
    """The values, or bands of a round width if there are many different numbers.

    >>> banded(["35", "80", ""])
    ['35', '80', '(empty)']
    """
    filled = [value for value in values if value.strip()]
    numbers = [_number(value) for value in filled]
    if len(set(filled)) <= _VALUES or any(number is None for number in numbers):
        return [value.strip() or EMPTY for value in values]
    known = [number for number in numbers if number is not None]
    width = _width(max(known) - min(known))
    whole = all(number == int(number) for number in known)

    def band(value: str) -> str:
        number = _number(value) if value.strip() else None
        if number is None:
            return EMPTY
        low = math.floor(number / width) * width
        if whole and width >= 1:
            return f"{low:g} to {low + width - 1:g}"
        return f"{low:g} to below {low + width:g}"

    return [band(value) for value in values]


def _width(reach: float) -> float:
    power = 10 ** math.floor(math.log10(reach / _BANDS))
    return next(step * power for step in (1, 2, 5, 10) if reach / (step * power) <= _BANDS - 1)


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _key(name: str) -> tuple[bool, float, str]:
    number = _number(name.split(" ")[0])
    return name == EMPTY, math.inf if number is None else number, name
