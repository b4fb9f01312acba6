"""Charts of a run's report, as inline SVG.

All are drawn for the narrowest screen (:mod:`fgvc_core.drawing.axes`): labels have at least 11 px
on a phone. Ticks are round, and shares are in percent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fgvc_core.drawing import svg
from fgvc_core.drawing.axes import LETTER, WIDTH, count_ticks, round_ticks, round_top
from fgvc_core.drawing.labels import Box, Named, beside, stacked

HEIGHT = 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 28

MOST_BARS, MOST_POINTS, MOST_TITLES = 240, 1000, 3000
"""Most elements in one figure, so that the page of a long run stays small."""

Number = float | int | None


@dataclass(frozen=True)
class Curve:
    """One line of a chart: a name, a CSS class, and a value (or None) for each round."""

    name: str
    style: str
    values: Sequence[Number]


@dataclass(frozen=True)
class Rung:
    """One row of :func:`ladder`: a name, a share, its interval or None, and a CSS class."""

    name: str
    share: float
    interval: tuple[float, float] | None
    style: str


def curves(title: str, lines: Sequence[Curve], marked: int = 0, *, shares: bool = False) -> str:
    """A line chart of values over rounds, each line with its name beside it.

    Args:
        title: Text alternative of the chart.
        lines: Curves of equal length; rounds count from 1.
        marked: A round to mark, or 0.
        shares: Whether values are shares, drawn from 0 to 100 %.
    """
    rounds = max((len(line.values) for line in lines), default=0)
    known = [v for line in lines for v in line.values if v is not None]
    top = 1.0 if shares else round_top(max(known, default=1.0))
    x = svg.scale(1, max(rounds, 2), LEFT, WIDTH - RIGHT)
    y = svg.scale(0, top, HEIGHT - BOTTOM, TOP)
    parts = _levels(round_ticks(0, top), y, percent=shares)
    for number in count_ticks(rounds):
        parts.append(svg.text(x(number), HEIGHT - 8, str(number), "tick middle"))
    if marked:
        parts.append(svg.line(x(marked), TOP, x(marked), HEIGHT - BOTTOM, "mark"))
    drawn = []
    for line in lines:
        every, wide = _thinned(line.values, MOST_POINTS)
        points = [
            (x(min(i * wide + 1, rounds)), y(v)) for i, v in enumerate(every) if v is not None
        ]
        drawn.append(Named(line.name, line.style, points))
        parts.append(svg.polyline(points, f"curve {line.style}"))
        parts += [svg.circle(px, py, 3.5, f"dot {line.style}") for px, py in points[-1:]]
    room = Box(LEFT + 4, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM - 2)
    # Where no name has room beside its line, all stand in a corner: a name is never left out.
    parts += beside(drawn, room) or stacked(drawn, room)
    return svg.figure(title, WIDTH, HEIGHT, parts)


def bars(title: str, values: Sequence[Number], unit: str) -> str:
    """A bar chart with one bar per round, or per group of rounds if there are very many."""
    total = len(values)
    values, wide = _thinned(values, MOST_BARS)
    known = [v for v in values if v is not None]
    top = round_top(max(known, default=1.0), 3)
    height = 150
    y = svg.scale(0, top, height - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / max(len(values), 1)
    parts = _levels(round_ticks(0, top, 3), y)
    for number, value in enumerate(values, start=1):
        if value is None:
            continue
        left = LEFT + (number - 1) * step
        told = f"round {(number - 1) * wide + 1}: {value:.3g} {unit}"
        tall = y(0) - y(value)
        parts.append(svg.rectangle(left + step * 0.1, y(value), step * 0.8, tall, "bar", told))
    for number in count_ticks(total):
        middle = LEFT + ((number - 1) // wide + 0.5) * step
        parts.append(svg.text(middle, height - 8, str(number), "tick middle"))
    return svg.figure(title, WIDTH, height, parts)


def ladder(title: str, rungs: Sequence[Rung]) -> str:
    """A dot plot of shares on one axis from 0 to 100 %, with a whisker for each interval.

    Name and value stand above a row's line, so that a long name leaves the axis its width.
    """
    line, left, right = 42, 14.0, WIDTH - 22.0
    height = line * len(rungs) + 32
    x = svg.scale(0, 1, left, right)
    parts = []
    for step in range(5):
        at = x(step / 4)
        parts.append(svg.line(at, 6, at, height - 26, "rule"))
        parts.append(svg.text(at, height - 8, f"{step * 25} %", "tick middle"))
    for number, rung in enumerate(rungs):
        y = number * line + 34
        told = f"{100 * rung.share:.1f} %"
        if rung.interval is not None:
            low, high = rung.interval
            told += f" ({100 * low:.1f} to {100 * high:.1f})"
        room = int((WIDTH - LETTER * len(told)) / LETTER) - 1
        parts.append(svg.text(0, y - 13, svg.short(rung.name, room), f"name {rung.style}"))
        parts.append(svg.text(WIDTH, y - 13, told, f"value end {rung.style}"))
        parts.append(svg.line(x(0), y, x(rung.share), y, f"stem {rung.style}"))
        if rung.interval is not None:
            parts += _whisker(x(rung.interval[0]), x(rung.interval[1]), y)
        parts.append(svg.circle(x(rung.share), y, 5, f"dot {rung.style}", f"{rung.name}: {told}"))
    return svg.figure(title, WIDTH, height, parts)


def _whisker(low: float, high: float, y: float) -> list[str]:
    ends = [svg.line(at, y - 5, at, y + 5, "whisker") for at in (low, high)]
    return [svg.line(low, y, high, y, "whisker"), *ends]


def _levels(
    values: Sequence[float], y: Callable[[float], float], *, percent: bool = False
) -> list[str]:
    """Horizontal rules with their labels."""
    parts = []
    for value in values:
        told = f"{100 * value:g} %" if percent else f"{value:g}"
        parts.append(svg.line(LEFT, y(value), WIDTH - RIGHT, y(value), "rule"))
        parts.append(svg.text(LEFT - 8, y(value) + 4, told, "tick end"))
    return parts


def holdings(title: str, sites: dict[str, list[int]], class_names: Sequence[str]) -> str:
    """A chart of the partition: one disc per site and class, its area the number of pictures."""
    left = 96.0
    column = min(34.0, (WIDTH - left) / max(len(class_names), 1))
    line, head = max(min(34.0, column), 15.0), 8
    height = int(line * len(sites) + head + 12)
    most = max((max(counts, default=0) for counts in sites.values()), default=1) or 1
    parts = []
    named = sum(count > 0 for counts in sites.values() for count in counts) <= MOST_TITLES
    for row, (site, counts) in enumerate(sites.items()):
        y = head + line * (row + 0.5)
        parts.append(svg.text(left - 8, y + 4, svg.short(site, 12), "name end"))
        for k, count in enumerate(counts):
            radius = (count / most) ** 0.5 * min(column, line) * 0.46
            if count:
                told = f"{site}: {count} of {class_names[k]}" if named else ""
                x = left + column * (k + 0.5)
                parts.append(svg.circle(x, y, max(radius, 0.8), "held", told))
    return svg.figure(title, WIDTH, height, parts)


def cells(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: dict[tuple[str, int], int],
    crossed: set[tuple[str, int]],
    ticks: Sequence[tuple[int, str]],
) -> str:
    """A heat map of bytes by site and round, with a cross where a reply was refused.

    Args:
        title: Text alternative of the chart.
        rows: Names of the rows.
        columns: Labels of the columns.
        values: (row's name, column) -> bytes; missing cells stay empty.
        crossed: Cells to cross out.
        ticks: (column, label) on the axis.
    """
    left, line = 96.0, 16.0
    step = min((WIDTH - left - RIGHT) / max(len(columns), 1), 26.0)
    height = line * len(rows) + 30
    most = max(values.values(), default=1) or 1
    parts = []
    for number, name in enumerate(rows):
        y = number * line + 4
        parts.append(svg.text(left - 8, y + 12, svg.short(name, 12), "name end"))
        for column, label in enumerate(columns):
            value = values.get((name, column))
            if value is None:
                continue
            x = left + column * step
            told = f"{name}, {label}: {value / 1e6:.3g} MB"
            shade = 0.12 + 0.78 * value / most
            parts.append(svg.rectangle(x, y, step * 0.88, line - 3, "cell", told, shade))
            if (name, column) in crossed:
                middle, half = x + step * 0.44, min(step * 0.3, 4.0)
                parts.append(
                    f'<path class="cross" d="M{middle - half:.1f} {y + 2.5:.1f}l{2 * half:.1f} 8'
                    f'm{-2 * half:.1f} 0l{2 * half:.1f} -8"/>'
                )
    for column, label in ticks:
        parts.append(svg.text(left + (column + 0.44) * step, height - 8, label, "tick middle"))
    return svg.figure(title, WIDTH, height, parts)


def _thinned(values: Sequence[Number], most: int) -> tuple[list[Number], int]:
    """At most ``most`` values, each the mean of the known ones of ``n`` neighbors; and n."""
    wide = max(-(-len(values) // most), 1)
    if wide == 1:
        return list(values), 1
    groups = [values[start : start + wide] for start in range(0, len(values), wide)]
    means: list[Number] = []
    for group in groups:
        known = [value for value in group if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return means, wide
