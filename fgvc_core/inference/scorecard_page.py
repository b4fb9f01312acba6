"""A scorecard as a self-contained, printable HTML page."""

from typing import Any

import numpy as np
from markupsafe import Markup

from fgvc_core.drawing import svg
from fgvc_core.drawing.axes import WIDTH
from fgvc_core.inference.calibration import told_of
from fgvc_core.inference.pages import render_page
from fgvc_core.inference.reliability import BINS, Reliability
from fgvc_core.inference.scorecard import Scorecard

CELLS_SHOWN = 40
"""Most classes for which the whole confusion matrix is drawn."""

PAIRS_SHOWN = 20

FEW = 10
"""A bar with fewer answers is drawn pale."""

DEEPEST = 38
"""Depth of the color of a cell that holds its whole row, in percent: digits stand out on it, by day
and by night."""


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
    left, top, right = 46.0, 10.0, WIDTH - 14.0
    bottom = top + right - left
    across, up = svg.scale(0, 1, left, right), svg.scale(0, 1, bottom, top)
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(svg.line(left, up(share), right, up(share), "rule"))
        parts.append(svg.text(left - 8, up(share) + 4, f"{100 * share:.0f} %", "tick end"))
        anchor = "end" if share == 1 else "middle"
        parts.append(svg.text(across(share), bottom + 18, f"{100 * share:.0f} %", f"tick {anchor}"))
    for number in range(BINS):
        count = int(bins.count_M[number])
        if count:
            accuracy, sure = float(bins.accuracy_M[number]), float(bins.confidence_M[number])
            x, width = across(number / BINS) + 1, (right - left) / BINS - 2
            told = f"{count} pictures: confidence {100 * sure:.1f} %, right {100 * accuracy:.1f} %"
            few = " few" if count < FEW else ""
            height = bottom - up(accuracy)
            parts.append(svg.rectangle(x, up(accuracy), width, height, f"bar{few}", told))
            low, high = sorted((accuracy, sure))
            parts.append(svg.rectangle(x, up(high), width, up(low) - up(high), "gap"))
    parts.append(svg.line(left, bottom, right, top, "mark"))
    parts.append(svg.text(left + 6, top + 14, "share that was right", "tick"))
    parts.append(svg.text((left + right) / 2, bottom + 38, "how sure it was", "tick middle"))
    told = f"Share that was right, by how sure it was; expected calibration error {bins.ece:.3f}"
    return svg.figure(told, WIDTH, bottom + 46, parts)


def _cells(confusion_KK: Any) -> list[list[dict[str, Any]]]:
    share_KK = confusion_KK / np.maximum(confusion_KK.sum(axis=1, keepdims=True), 1)
    return [
        [
            {"count": int(confusion_KK[t, p]), "share": round(DEEPEST * float(share_KK[t, p]))}
            for p in range(len(confusion_KK))
        ]
        for t in range(len(confusion_KK))
    ]
