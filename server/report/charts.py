"""Charts of a run's report, as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

from fgvc_core.drawing import svg

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 14, 30

MOST_BARS, MOST_POINTS, MOST_TITLES = 240, 1000, 3000
"""Most elements in one figure, so that the page of a long run stays small."""

Number = float | int | None


@dataclass(frozen=True)
class Curve:
    """One line of a chart: a name, a CSS class, and a value (or None) for each round."""

    name: str
    style: str
    values: Sequence[Number]


def curves(title: str, lines: Sequence[Curve], top: float, marked: int = 0) -> str:
    """A line chart of values over rounds.

    Args:
        title: Text alternative of the chart.
        lines: Curves of equal length; rounds count from 1.
        top: Value at the upper edge; the lower edge is 0.
        marked: A round to mark, or 0.
    """
    rounds = max((len(line.values) for line in lines), default=0)
    x = svg.scale(1, max(rounds, 2), LEFT, WIDTH - RIGHT)
    y = svg.scale(0, top, HEIGHT - BOTTOM, TOP)
    parts = []
    for step in range(5):
        value = top * step / 4
        parts.append(svg.line(LEFT, y(value), WIDTH - RIGHT, y(value), "rule"))
        parts.append(svg.text(LEFT - 8, y(value) + 4, f"{value:.2g}", "tick end"))
    for number in _ticks(rounds):
        parts.append(svg.text(x(number), HEIGHT - 8, str(number), "tick middle"))
    if marked:
        parts.append(svg.line(x(marked), TOP, x(marked), HEIGHT - BOTTOM, "mark"))
    for line in lines:
        every, wide = _thinned(line.values, MOST_POINTS)
        points = [
            (x(min(i * wide + 1, rounds)), y(v)) for i, v in enumerate(every) if v is not None
        ]
        parts.append(svg.polyline(points, f"curve {line.style}"))
        parts += [svg.circle(px, py, 3.5, f"dot {line.style}") for px, py in points[-1:]]
    return svg.figure(title, WIDTH, HEIGHT, parts)


def bars(title: str, values: Sequence[Number], unit: str) -> str:
    """A bar chart with one bar per round, or per group of rounds if there are very many."""
    total = len(values)
    values, wide = _thinned(values, MOST_BARS)
    known = [v for v in values if v is not None]
    top = max(known, default=1) or 1
    height = 150
    y = svg.scale(0, top, height - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / max(len(values), 1)
    parts = [svg.line(LEFT, y(0), WIDTH - RIGHT, y(0), "rule")]
    parts.append(svg.text(LEFT - 8, y(top) + 4, f"{top:.3g}", "tick end"))
    for number, value in enumerate(values, start=1):
        if value is None:
            continue
        left = LEFT + (number - 1) * step
        told = f"round {(number - 1) * wide + 1}: {value:.3g} {unit}"
        tall = y(0) - y(value)
        parts.append(svg.rectangle(left + step * 0.1, y(value), step * 0.8, tall, "bar", told))
    for number in _ticks(total):
        middle = LEFT + ((number - 1) // wide + 0.5) * step
        parts.append(svg.text(middle, height - 8, str(number), "tick middle"))
    return svg.figure(title, WIDTH, height, parts)


def ladder(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """A dot plot of shares from 0 to 1, one row each.

    Args:
        title: Text alternative of the chart.
        rows: (name, share, CSS class).
    """
    line, label = 30, 190
    height = line * len(rows) + 34
    x = svg.scale(0, 1, label, WIDTH - 60)
    parts = []
    for step in range(6):
        parts.append(svg.line(x(step / 5), 6, x(step / 5), height - 28, "rule"))
        parts.append(svg.text(x(step / 5), height - 10, f"{step * 20} %", "tick middle"))
    for number, (name, share, style) in enumerate(rows):
        y = number * line + 22
        parts.append(svg.text(label - 12, y + 4, svg.short(name, 24), f"name end {style}"))
        parts.append(svg.line(x(0), y, x(share), y, f"stem {style}"))
        parts.append(svg.circle(x(share), y, 6, f"dot {style}"))
        parts.append(svg.text(x(share) + 12, y + 4, f"{100 * share:.1f} %", f"value {style}"))
    return svg.figure(title, WIDTH, height, parts)


def holdings(title: str, sites: dict[str, list[int]], class_names: Sequence[str]) -> str:
    """A chart of the partition: one disc per site and class, its area the number of pictures."""
    column = min(34.0, (WIDTH - 120) / max(len(class_names), 1))
    line, head = max(min(34.0, column), 14.0), 8
    height = int(line * len(sites) + head + 12)
    most = max((max(counts, default=0) for counts in sites.values()), default=1) or 1
    parts = []
    named = sum(count > 0 for counts in sites.values() for count in counts) <= MOST_TITLES
    for row, (site, counts) in enumerate(sites.items()):
        y = head + line * (row + 0.5)
        parts.append(svg.text(104, y + 4, svg.short(site, 14), "name end"))
        for k, count in enumerate(counts):
            radius = (count / most) ** 0.5 * min(column, line) * 0.46
            if count:
                told = f"{site}: {count} of {class_names[k]}" if named else ""
                x = 120 + column * (k + 0.5)
                parts.append(svg.circle(x, y, max(radius, 0.8), "held", told))
    return svg.figure(title, WIDTH, height, parts)


def cells(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: dict[tuple[str, int], int],
    crossed: set[tuple[str, int]],
) -> str:
    """A heat map of bytes by site and round, with a cross where a reply was refused.

    Args:
        title: Text alternative of the chart.
        rows: Names of the rows.
        columns: Labels of the columns.
        values: (row's name, column) -> bytes; missing cells stay empty.
        crossed: Cells to cross out.
    """
    left, line = 120.0, 16.0
    step = min((WIDTH - left - RIGHT) / max(len(columns), 1), 26.0)
    height = line * len(rows) + 30
    most = max(values.values(), default=1) or 1
    parts = []
    for number, name in enumerate(rows):
        y = number * line + 4
        parts.append(svg.text(left - 10, y + 12, svg.short(name, 15), "name end"))
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
    for number in _ticks(len(columns)):
        x = left + (number - 0.56) * step
        label = columns[number - 1].removeprefix("rounds ").removeprefix("round ").split(" ")[0]
        parts.append(svg.text(x, height - 8, label, "tick middle"))
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


def _ticks(rounds: int) -> list[int]:
    """Rounds to label on the axis: evenly spaced, and the last one if there is room."""
    step = max(1, -(-rounds // 8))
    ticks = list(range(1, rounds + 1, step))
    if ticks and rounds - ticks[-1] >= step / 2:
        ticks.append(rounds)
    return ticks
