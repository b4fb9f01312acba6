"""A scorecard as a self-contained, printable HTML page."""

from typing import Any

import numpy as np
from markupsafe import Markup

from fgvc_core.inference.calibration import told_of
from fgvc_core.inference.pages import render_page
from fgvc_core.inference.reliability import BINS, Reliability
from fgvc_core.inference.scorecard import Scorecard

CELLS_SHOWN = 40
"""Most classes for which the whole confusion matrix is drawn."""

PAIRS_SHOWN = 20

FEW = 10
"""A bar with fewer answers is drawn pale."""

_SIDE, _LEFT, _BOTTOM = 300, 42, 34


def scorecard_page(card: Scorecard, title: str, data: str, notes: list[str]) -> str:
    """The page (HTML).

    Args:
        card: The scorecard.
        title: Name of the model.
        data: Description of the pictures.
        notes: Further paragraphs.
    """
    names = card.class_names
    confusion_KK = card.counts.confusion_KK
    return render_page(
        "scorecard.html.j2",
        {
            "card": card,
            "told": told_of(card.calibration),
            "title": title,
            "data": data,
            "notes": notes,
            "classes": sorted(card.classes(), key=lambda one: one["f1"]),
            "reliability": Markup(reliability_figure(card.reliable)),
            "cells": _cells(confusion_KK) if len(names) <= CELLS_SHOWN else [],
            "pairs": [
                {"true": names[t], "predicted": names[p], "count": count,
                 "of": int(confusion_KK[t].sum())}
                for t, p, count in card.counts.most_confused(PAIRS_SHOWN)
            ],
        },
    )  # fmt: skip


def reliability_figure(bins: Reliability) -> str:
    """Reliability diagram (SVG): accuracy, its gap to the confidence, and the diagonal."""
    width = _SIDE / BINS
    parts = [
        f'<svg class="figure" viewBox="0 0 {_LEFT + _SIDE + 14} {_SIDE + _BOTTOM + 14}" role="img" '
        f'aria-label="Accuracy over confidence; expected calibration error {bins.ece:.3f}">'
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = 8 + _SIDE * (1 - share)
        parts.append(
            f'<line class="rule" x1="{_LEFT}" x2="{_LEFT + _SIDE}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * share:.0f}</text>'
            f'<text x="{_LEFT + _SIDE * share:.1f}" y="{_SIDE + 26}" text-anchor="middle">'
            f"{100 * share:.0f}</text>"
        )
    for number in range(BINS):
        count = int(bins.count_M[number])
        if not count:
            continue
        accuracy, confidence = float(bins.accuracy_M[number]), float(bins.confidence_M[number])
        few = " few" if count < FEW else ""
        x, low, high = _LEFT + number * width, *sorted((accuracy, confidence))
        parts.append(
            f'<rect class="bar{few}" x="{x + 1:.1f}" y="{8 + _SIDE * (1 - accuracy):.1f}" '
            f'width="{width - 2:.1f}" height="{_SIDE * accuracy:.1f}"><title>{count} pictures: '
            f"confidence {100 * confidence:.1f} %, right {100 * accuracy:.1f} %</title></rect>"
            f'<rect class="gap" x="{x + 1:.1f}" y="{8 + _SIDE * (1 - high):.1f}" '
            f'width="{width - 2:.1f}" height="{_SIDE * (high - low):.1f}"/>'
        )
    parts.append(
        f'<line class="ideal" x1="{_LEFT}" y1="{8 + _SIDE}" x2="{_LEFT + _SIDE}" y2="8"/>'
        f'<text x="{_LEFT + _SIDE / 2:.0f}" y="{_SIDE + 44}" text-anchor="middle">'
        "confidence, % (height: share that was right, %)</text></svg>"
    )
    return "".join(parts)


def _cells(confusion_KK: Any) -> list[list[dict[str, Any]]]:
    share_KK = confusion_KK / np.maximum(confusion_KK.sum(axis=1, keepdims=True), 1)
    return [
        [
            {"count": int(confusion_KK[t, p]), "share": round(60 * float(share_KK[t, p]))}
            for p in range(len(confusion_KK))
        ]
        for t in range(len(confusion_KK))
    ]
