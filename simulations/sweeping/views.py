"""Selection of a sweep's figures: score against each swept key, against bytes, against epsilon."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fieldmark.simulations.sweeping.axes import Axis
from fieldmark.simulations.sweeping.figure import STYLES, Horizontal, Mark, Series, draw
from fieldmark.simulations.sweeping.table import Row

SCORES = {"top1": "top-1, held-out test", "sites_top1": "top-1, mean of the sites' own"}


@dataclass(frozen=True)
class View:
    """A figure and its legend, (CSS class, name) of each line that is not named in the figure."""

    heading: str
    svg: str
    legend: tuple[tuple[str, str], ...]


def score_of(rows: Sequence[Row]) -> str:
    """The score to draw: top-1 on the held-out test, or else the sites' own."""
    return "top1" if any(row["top1"] is not None for row in rows) else "sites_top1"


def views(rows: Sequence[Row], table: Sequence[Row], axes: Sequence[Axis]) -> list[View]:
    """Every figure for which there are results so far."""
    score = score_of(rows)
    if not any(entry[score] is not None for entry in table):
        return []
    found = [_against_key(axis, rows, table, axes, score) for axis in axes if len(axis.values) > 1]
    for name, title, unit in (
        ("bytes", "Megabytes moved in all", 1e-6),
        ("epsilon", "Epsilon of a run, the largest site's", 1.0),
    ):
        swept = name == "epsilon" and any(axis.key == "privacy.epsilon" for axis in axes)
        if not swept and _differ(table, name):
            found.append(_against_figure(name, title, unit, rows, table, axes, score))
    return found


def _against_key(
    axis: Axis, rows: Sequence[Row], table: Sequence[Row], axes: Sequence[Axis], score: str
) -> View:
    numbers = axis.numbers
    at = dict(zip(axis.values, numbers or map(float, range(len(axis.values))), strict=True))
    horizontal = (
        Horizontal(axis.key, tuple(sorted(numbers)))
        if numbers
        else Horizontal(axis.key, tuple(at.values()), axis.values)
    )
    others = [other for other in axes if other.key != axis.key]
    series = _series(
        rows, table, others, score, lambda row: at[row["settings"][axis.key]], joined=bool(numbers)
    )
    return _view(f"Against {axis.key}", horizontal, series, score)


def _against_figure(
    name: str,
    title: str,
    unit: float,
    rows: Sequence[Row],
    table: Sequence[Row],
    axes: Sequence[Axis],
    score: str,
) -> View:
    """The score of each setting against its bytes (or epsilon), with labels."""
    done = [entry for entry in table if entry[name] is not None and entry[score] is not None]
    values = sorted({entry[name] * unit for entry in done})
    series = _series(rows, done, axes[:-1], score, lambda row: row[name] * unit, joined=True)
    return _view(title, Horizontal(title, tuple(values)), series, score)


def _series(
    rows: Sequence[Row],
    table: Sequence[Row],
    others: Sequence[Axis],
    score: str,
    at: Callable[[Row], float],
    *,
    joined: bool,
) -> list[Series]:
    """One line per combination of the other keys, or the overall mean if there are more than
    six."""
    groups: dict[str, list[Row]] = {}
    for entry in (e for e in table if e[score] is not None):
        groups.setdefault(_name(entry, others), []).append(entry)
    if len(groups) > len(STYLES):
        drawn = [entry for entry in table if entry[score] is not None]
        groups = {f"{len(groups)} settings of the other keys": drawn}
    series = []
    for name, entries in groups.items():
        marks = []
        for entry in sorted(entries, key=at):
            own = [r for r in rows if r["settings"] == entry["settings"] and r[score] is not None]
            runs = tuple((at(row), row[score]) for row in own)
            marks.append(Mark(at(entry), entry[score], entry[f"{score}_deviation"], runs))
        series.append(Series(name, tuple(marks), joined))
    return series


def _view(heading: str, axis: Horizontal, series: Sequence[Series], score: str) -> View:
    svg, named = draw(f"{SCORES[score]}: {heading.lower()}", axis, series, SCORES[score])
    lines = enumerate(() if named else series)
    legend = tuple((STYLES[n], one.name) for n, one in lines if one.name)
    return View(heading, svg, legend)


def _name(entry: Row, axes: Iterable[Axis]) -> str:
    return ", ".join(
        f"{axis.key.rpartition('.')[2]} {entry['settings'][axis.key]}" for axis in axes
    )


def _differ(table: Sequence[Row], name: str) -> bool:
    values: list[Any] = [entry[name] for entry in table if entry[name] is not None]
    return len(values) > 1 and max(values) > 1.01 * min(values)
