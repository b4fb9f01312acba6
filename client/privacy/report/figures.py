"""Figures as inline SVG: the bound on an attacker, and the budget.

Colours are CSS variables, so that they follow the page's theme. Coordinates are in a view
box of fixed width; the page scales it.
"""

import math
from collections.abc import Iterable
from typing import Any

from fgvc_core.words import escaped as escape

WIDTH = 400


def attack_curve(spent: dict[str, Any] | None, cap: dict[str, Any] | None) -> str:
    """Most that is noticed over false alarms: as spent (filled), with the cap used up (dashed).

    Args:
        spent: As :func:`client.privacy.report.meaning.meaning_of` gives it, or None.
        cap: The same at the cap, or None.
    """
    left, top, right, bottom = 46.0, 12.0, WIDTH - 14.0, 330.0

    def at(x: float, y: float) -> str:
        return f"{left + x * (right - left):.1f},{bottom - y * (bottom - top):.1f}"

    parts = [
        _open(
            386, "The most that any attacker can notice, for each rate of false alarms, in per cent"
        )
    ]
    for step in range(5):
        share = step / 4
        y = bottom - share * (bottom - top)
        x = left + share * (right - left)
        parts.append(_line(left, y, right, y, "rule"))
        parts.append(_text(left - 8, y + 4, f"{100 * share:.0f} %", "tick end"))
        if step:
            anchor = "end" if step == 4 else "middle"
            parts.append(_text(x, bottom + 20, f"{100 * share:.0f} %", f"tick {anchor}"))
    parts.append(_text((left + right) / 2, bottom + 44, "false alarms", "tick middle"))
    if spent is not None:
        corners = _corners(spent)
        shape = " ".join(at(x, y) for x, y in [*corners, (1.0, 0.0), (0.0, 0.0)])
        parts.append(f'<polygon class="reach" points="{shape}"/>')
        parts.append(_path([at(x, y) for x, y in corners], "curve spent"))
    if cap is not None:
        parts.append(_path([at(x, y) for x, y in _corners(cap)], "curve cap"))
    parts.append(_path([at(0, 0), at(1, 1)], "curve chance"))
    return "".join([*parts, "</svg>"])


def belief_figure(meaning: dict[str, Any]) -> str:
    """What a belief can become: before (hollow) and after at most (filled), a row each."""
    rows = meaning["beliefs"]
    left, right, line = 14.0, WIDTH - 14.0, 114.0
    height = line * len(rows) + 44
    parts = [_open(height, "The most that a belief can rise to, from three beliefs before")]

    def x(share: float) -> float:
        return left + share * (right - left)

    for step in range(5):
        share = step / 4
        anchor = "end" if step == 4 else "start" if step == 0 else "middle"
        parts.append(_line(x(share), 4, x(share), height - 30, "rule"))
        parts.append(_text(x(share), height - 8, f"{100 * share:.0f} %", f"tick {anchor}"))
    for number, row in enumerate(rows):
        y = number * line + 74
        before, after = x(row["before"]), x(row["after"])
        label = f"{percent(row['before'])} before, at most {percent(row['after'])} after"
        parts.append(_text(left, y - 24, label, "name"))
        parts.append(_line(before, y, after, y, "rise"))
        parts.append(f'<circle class="before" cx="{before:.1f}" cy="{y:.1f}" r="7"/>')
        parts.append(f'<circle class="after" cx="{after:.1f}" cy="{y:.1f}" r="7.5"/>')
    return "".join([*parts, "</svg>"])


def budget_bar(epsilon: float, cap: float) -> str:
    """Spent of the cap, as a bar."""
    width, height = 640, 16
    share = min(epsilon / cap, 1.0)
    title = f"epsilon {epsilon:.3f} of {cap:g} is spent"
    return (
        f'<svg class="bar" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f'<rect class="whole" width="{width}" height="{height}"/>'
        f'<rect class="used" width="{share * width:.1f}" height="{height}"/></svg>'
    )


def percent(share: float) -> str:
    """A share as text, with as many digits as keep it from reading 100 % or 0 %.

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
    """The corners of the curve: it is straight between them."""
    epsilon, delta = meaning["epsilon"], meaning["delta"]
    false_alarms = (1 - delta) * math.exp(-epsilon) / (1 + math.exp(-epsilon))
    return [
        (0.0, delta),
        (false_alarms, meaning["right_guesses"]),
        (1 - delta, 1.0),
        (1.0, 1.0),
    ]


def _open(height: float, title: str) -> str:
    return (
        f'<svg class="figure" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
    )


def _path(points: Iterable[str], style: str) -> str:
    return f'<polyline class="{style}" points="{" ".join(points)}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
