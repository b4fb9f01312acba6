"""Figures of a sweep as SVG: a score against a setting, epsilon or bytes, with mean and deviation.

Each run is a faint dot, each setting's mean a filled one with a whisker of one standard deviation;
lines join marks that differ in the swept key only. The axis is logarithmic if the values are
positive and span a factor of ten.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fgvc_core.drawing import svg
from fgvc_core.drawing.axes import LETTER, WIDTH, round_ticks
from fgvc_core.drawing.labels import Box, Named, beside

HEIGHT = 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 22, 50
NAMES = Box(LEFT + 4, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM - 2)
"""Where names of lines may stand."""
STYLES = ("s1", "s2", "s3", "s4", "s5", "s6")


@dataclass(frozen=True)
class Mark:
    """The mean of one setting.

    Attributes:
        x: Position on the axis.
        mean: 0 to 1.
        deviation: Standard deviation over the runs, or None for a single one.
        runs: (x, score from 0 to 1) of every run.
    """

    x: float
    mean: float
    deviation: float | None
    runs: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Series:
    """Marks in order of x; a line joins them if ``joined``."""

    name: str
    marks: tuple[Mark, ...]
    joined: bool = True


@dataclass(frozen=True)
class Horizontal:
    """The x-axis: a title, and ticks; ``names`` if the values are not numbers."""

    title: str
    ticks: tuple[float, ...]
    names: tuple[str, ...] | None = None

    @property
    def logarithmic(self) -> bool:
        """Whether values are positive and span a factor of ten."""
        low, high = min(self.ticks), max(self.ticks)
        return self.names is None and low > 0 and high / low >= 10


def draw(title: str, axis: Horizontal, series: Sequence[Series], score: str) -> tuple[str, bool]:
    """An SVG in the page's colors, and whether its lines have their names beside them.

    Args:
        title: Text alternative of the figure.
        axis: The x-axis.
        series: At most six; each has marks within the axis.
        score: Name of the y-axis.
    """
    place = _across(axis)
    low, high = _span(series)
    y = svg.scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = []
    for value in round_ticks(low, high, 6):
        parts.append(svg.line(LEFT, y(value), WIDTH - RIGHT, y(value), "rule"))
        parts.append(svg.text(LEFT - 8, y(value) + 4, f"{100 * value:.3g} %", "tick end"))
    parts += _named(axis, place)
    # Differences of a few points are what a sweep is made for: where zero is left out, it says so.
    cut = f"; the axis begins at {100 * low:.3g} %" if low > 0 else ""
    parts.append(svg.text(0, TOP - 10, score + cut, "tick"))
    for number, one in enumerate(series):
        # On an axis of names, series are drawn side by side so that they do not overlap.
        aside = 9.0 * (number - (len(series) - 1) / 2) if axis.names else 0.0
        parts += _one(one, STYLES[number % len(STYLES)], _shifted(place, aside), y)
    names = [] if axis.names else beside(_lines(series, place, y), NAMES)
    return svg.figure(title, WIDTH, HEIGHT, [*parts, *names]), bool(names)


def _lines(
    series: Sequence[Series], x: Callable[[float], float], y: Callable[[float], float]
) -> list[Named]:
    return [
        Named(one.name, STYLES[number % len(STYLES)], [(x(m.x), y(m.mean)) for m in one.marks])
        for number, one in enumerate(series)
        if one.name
    ]


def _one(
    series: Series, style: str, x: Callable[[float], float], y: Callable[[float], float]
) -> list[str]:
    path = [(x(mark.x), y(mark.mean)) for mark in series.marks]
    parts = [svg.polyline(path, f"curve {style}")] if series.joined else []
    for mark in series.marks:
        told = f"{series.name}: {100 * mark.mean:.1f} %"
        if mark.deviation is not None:
            top, bottom = y(mark.mean + mark.deviation), y(mark.mean - mark.deviation)
            parts.append(svg.line(x(mark.x), bottom, x(mark.x), top, f"whisker {style}"))
            told += f" ± {100 * mark.deviation:.1f}"
        parts += [svg.circle(x(at), y(share), 2.6, f"run {style}") for at, share in mark.runs]
        parts.append(svg.circle(x(mark.x), y(mark.mean), 4.6, f"dot {style}", told))
    return parts


def _named(axis: Horizontal, place: Callable[[float], float]) -> list[str]:
    parts = []
    end = -math.inf
    for number, value in enumerate(axis.ticks):
        name = axis.names[number] if axis.names else f"{value:.4g}"
        name = svg.short(name, 18)
        half = LETTER / 2 * len(name)
        # Skip a label that would overlap the last one, or leave the figure.
        if place(value) - half < max(end + 6, 0) or place(value) + half > WIDTH:
            continue
        end = place(value) + half
        parts.append(
            svg.line(place(value), HEIGHT - BOTTOM, place(value), HEIGHT - BOTTOM + 4, "rule")
        )
        parts.append(svg.text(place(value), HEIGHT - BOTTOM + 18, name, "tick middle"))
    title = svg.short(axis.title, 30) + (", logarithmic" if axis.logarithmic else "")
    parts.append(svg.text(WIDTH / 2, HEIGHT - 6, title, "tick middle"))
    return parts


def _across(axis: Horizontal) -> Callable[[float], float]:
    low, high = min(axis.ticks), max(axis.ticks)
    start, end = LEFT + 26.0, WIDTH - RIGHT - 26.0
    if axis.logarithmic:
        scale = svg.scale(math.log(low), math.log(high), start, end)
        return lambda value: scale(math.log(value))
    return svg.scale(low, high, start, end)


def _span(series: Sequence[Series]) -> tuple[float, float]:
    """Range of the y-axis: all values with a margin, in steps of 5 %."""
    values = [share for one in series for mark in one.marks for _, share in mark.runs]
    for one in series:
        for mark in one.marks:
            spread = mark.deviation or 0.0
            values += [mark.mean - spread, mark.mean + spread]
    low = max(math.floor((min(values) - 0.01) * 20) / 20, 0.0)
    high = min(math.ceil((max(values) + 0.01) * 20) / 20, 1.0)
    return low, max(high, low + 0.05)


def _shifted(place: Callable[[float], float], aside: float) -> Callable[[float], float]:
    return lambda value: place(value) + aside
