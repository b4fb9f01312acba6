"""Figures of a privacy report as inline SVG: limits on an attacker, and the budget."""

import math
from typing import Any

from fgvc_core.drawing import svg
from fgvc_core.drawing.axes import WIDTH
from fgvc_core.words import escaped


def attack_curve(spent: dict[str, Any] | None, cap: dict[str, Any] | None) -> str:
    """Largest detection rate over false-alarm rate: as spent (filled), and at the cap (dashed).

    Args:
        spent: As returned by :func:`fieldmark.client.privacy.report.meaning.meaning_of`, or None.
        cap: The same at the cap, or None.
    """
    left, top, right, bottom = 46.0, 12.0, WIDTH - 14.0, 282.0

    def at(x: float, y: float) -> svg.Point:
        return left + x * (right - left), bottom - y * (bottom - top)

    parts = []
    for step in range(5):
        share = step / 4
        y = bottom - share * (bottom - top)
        x = left + share * (right - left)
        parts.append(svg.line(left, y, right, y, "rule"))
        parts.append(svg.text(left - 8, y + 4, f"{100 * share:.0f} %", "tick end"))
        if step:
            anchor = "end" if step == 4 else "middle"
            parts.append(svg.text(x, bottom + 20, f"{100 * share:.0f} %", f"tick {anchor}"))
    parts.append(svg.text((left + right) / 2, bottom + 44, "false alarms", "tick middle"))
    if spent is not None:
        corners = _corners(spent)
        shape = [at(x, y) for x, y in [*corners, (1.0, 0.0), (0.0, 0.0)]]
        parts.append(svg.polygon(shape, "reach"))
        parts.append(svg.polyline([at(x, y) for x, y in corners], "curve spent"))
    if cap is not None:
        parts.append(svg.polyline([at(x, y) for x, y in _corners(cap)], "curve cap"))
    parts.append(svg.polyline([at(0, 0), at(1, 1)], "curve chance"))
    parts.append(svg.text(*at(0.66, 0.56), "guessing", "tick"))
    name, shown = ("as spent", spent) if spent is not None else ("at the cap", cap)
    if shown is not None and (corner := _corners(shown)[1])[1] > 0.8:
        # Below that the name would lie on the line of guessing.
        parts.append(svg.text(*at(corner[0] + 0.04, corner[1] - 0.1), name, "name"))
    told = "The most that any attacker can notice, for each rate of false alarms, in per cent"
    return svg.figure(told, WIDTH, 338, parts)


def belief_figure(meaning: dict[str, Any]) -> str:
    """Largest change of a belief: before (hollow) and after (filled), one row per prior."""
    rows = meaning["beliefs"]
    left, right, line = 14.0, WIDTH - 14.0, 114.0
    height = line * len(rows) + 44
    parts = []

    def x(share: float) -> float:
        return left + share * (right - left)

    for step in range(5):
        share = step / 4
        anchor = "end" if step == 4 else "start" if step == 0 else "middle"
        parts.append(svg.line(x(share), 4, x(share), height - 30, "rule"))
        parts.append(svg.text(x(share), height - 8, f"{100 * share:.0f} %", f"tick {anchor}"))
    for number, row in enumerate(rows):
        y = number * line + 74
        before, after = x(row["before"]), x(row["after"])
        label = f"{percent(row['before'])} before, at most {percent(row['after'])} after"
        parts.append(svg.text(left, y - 24, label, "name"))
        parts.append(svg.line(before, y, after, y, "rise"))
        parts.append(svg.circle(before, y, 7, "before"))
        parts.append(svg.circle(after, y, 7.5, "after"))
    told = "The most that a belief can rise to, from three beliefs before"
    return svg.figure(told, WIDTH, height, parts)


def budget_bar(epsilon: float, cap: float) -> str:
    """Spent part of the cap, as a bar."""
    width, height = 640, 16
    share = min(epsilon / cap, 1.0)
    title = f"epsilon {epsilon:.3f} of {cap:g} is spent"
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escaped(title)}"><title>{escaped(title)}</title>'
        f'<rect class="whole" width="{width}" height="{height}"/>'
        f'<rect class="used" width="{share * width:.1f}" height="{height}"/></svg>'
    )


def percent(share: float) -> str:
    """Share as text, with enough digits that it does not round to 100 % or 0 %.

    >>> percent(0.5), percent(0.98201), percent(0.99966), percent(1e-5)
    ('50 %', '98.2 %', '99.97 %', '0.001 %')
    """
    if share in (0.0, 1.0):
        return f"{100 * share:.0f} %"
    digits = 1
    while digits < 12 and float(f"{100 * share:.{digits}f}") in (0.0, 100.0):
        digits += 1
    text = f"{100 * share:.{digits}f}"
    return text.removesuffix(".0") + " %"


def _corners(meaning: dict[str, Any]) -> list[tuple[float, float]]:
    """Corners of the piecewise linear curve."""
    epsilon, delta = meaning["epsilon"], meaning["delta"]
    false_alarms = (1 - delta) * math.exp(-epsilon) / (1 + math.exp(-epsilon))
    return [
        (0.0, delta),
        (false_alarms, meaning["right_guesses"]),
        (1 - delta, 1.0),
        (1.0, 1.0),
    ]
