"""What the site's page shows, with the budget as a picture, and what its buttons do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fgvc_core.drawing import svg
from fgvc_core.drawing.axes import WIDTH, round_ticks, round_top
from fieldmark.client.deployment.deciding import WaitingRuns, decide
from fieldmark.client.deployment.status import read_site_status

_LEFT, _RIGHT = 14.0, WIDTH - 14.0
_TOP, _TALL = 30.0, 26.0
HEIGHT = 88.0


class PageView:
    """One site, as its page shows it.

    Args:
        home: Its home.
    """

    def __init__(self, home: Path) -> None:
        self._home, self._waiting = home, WaitingRuns()

    def read(self) -> dict[str, Any]:
        """``s``: the status as ``site status`` prints it; ``figure``: the budget as a picture.

        Raises:
            FieldmarkError: as :func:`.status.read_site_status`, or if no recipe could be read.
        """
        status = read_site_status(self._home, self._waiting)
        figure = budget_figure(status["budget"], status["awaiting_approval"])
        return {"s": status, "figure": Markup(figure)}

    def decide(self, what: str, run: str, digest: str) -> None:
        """Record a decision; see :func:`.deciding.decide`."""
        decide(self._home, what, run, digest)


def budget_figure(budget: dict[str, Any], waiting: Sequence[dict[str, Any]] = ()) -> str:
    """A bar from 0 to the cap, or to a round value above what is spent where there is none.

    Args:
        budget: As by :meth:`fieldmark.client.privacy.budget.Budget.as_json`.
        waiting: As by :func:`fieldmark.client.privacy.approval.waiting_in_words`. The bar shows the
            total after the dearest of the runs that the policy would let in.
    """
    spent, cap = budget["spent"], budget["cap"]
    would = max((w["total_after"] for w in waiting if w["allowed"] and w["total_after"]), default=0)
    top = cap if cap is not None else round_top(1.25 * max(spent, would, 0.8))
    x = svg.scale(0, top, _LEFT, _RIGHT)
    told = budget_in_words(budget)
    parts = [svg.rectangle(_LEFT, _TOP, _RIGHT - _LEFT, _TALL, "whole")]
    if would > spent:
        after = f"after the run that waits: {would:.3g}"
        parts.append(svg.rectangle(x(spent), _TOP, x(would) - x(spent), _TALL, "would", after))
        told += f"; {after}"
    parts.append(svg.rectangle(_LEFT, _TOP, x(spent) - _LEFT, _TALL, "spent", f"spent {spent:.3g}"))
    parts.append(svg.text(_LEFT, _TOP - 10, f"spent {spent:.3g}", "name"))
    left = "no cap" if cap is None else f"left {budget['left']:.3g}"
    parts.append(svg.text(_RIGHT, _TOP - 10, left, "name end"))
    for value in round_ticks(0, top, 4):
        parts.append(svg.line(x(value), _TOP + _TALL, x(value), _TOP + _TALL + 5, "mark"))
        style = "tick" if value == 0 else "tick end" if x(value) > _RIGHT - 8 else "tick middle"
        parts.append(svg.text(x(value), _TOP + _TALL + 20, f"{value:g}", style))
    if cap is not None:
        parts.append(svg.line(_RIGHT, _TOP - 4, _RIGHT, _TOP + _TALL + 4, "limit"))
    return svg.figure(told, WIDTH, HEIGHT, parts)


def budget_in_words(budget: dict[str, Any]) -> str:
    """The budget as one phrase."""
    spent = f"epsilon {budget['spent']:.3g} at delta {budget['delta']:g} is spent"
    if budget["cap"] is None:
        return f"{spent}; the policy sets no cap"
    return f"{spent} of {budget['cap']:g}, {budget['left']:.3g} is left"
