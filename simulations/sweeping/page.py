"""Output files of a sweep: one HTML page, two CSV files, one JSON file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from fgvc_core.drawing.numbers import points as in_points
from fgvc_core.drawing.tables import folding
from fgvc_core.files import replace_text
from fgvc_core.words import visible_lines
from fieldmark.server.report.page import report_style
from fieldmark.simulations.sweeping.axes import Axis, Point
from fieldmark.simulations.sweeping.table import (
    Row,
    read_runs,
    runs_csv,
    summarise,
    table_csv,
)
from fieldmark.simulations.sweeping.telling import BEST, NOT_APART, in_words, tell_apart
from fieldmark.simulations.sweeping.views import SCORES, score_of, views

RUNS_SHOWN = 300


def write_sweep(
    points: Sequence[Point], axes: Sequence[Axis], seeds: int, out: Path
) -> dict[str, Any]:
    """Write ``sweep.html``, ``runs.csv``, ``table.csv`` and ``sweep.json`` for the runs so far.

    Returns:
        The contents of ``sweep.json``: ``over``, ``seeds``, ``table`` (one entry per setting, with
        ``against_best``), ``in_words`` (what the table shows) and ``runs``.
    """
    rows = read_runs(points, out)
    table = summarise(rows)
    for entry, told in zip(table, tell_apart(rows, table, score_of(rows)), strict=True):
        entry["against_best"] = told
    result = {
        "name": points[0].recipe.name,
        "over": {axis.key: list(axis.values) for axis in axes},
        "seeds": [points[0].recipe.seed + number for number in range(seeds)],
        "table": table,
        "in_words": in_words(table, [entry["against_best"] for entry in table], score_of(rows)),
        "runs": rows,
    }
    replace_text(out / "runs.csv", runs_csv(rows, axes))
    replace_text(out / "table.csv", table_csv(table, axes))
    replace_text(out / "sweep.json", json.dumps(result, indent=1))
    replace_text(out / "sweep.html", folding(_page(result, rows, table, axes)))
    return result


def _page(
    result: dict[str, Any], rows: Sequence[Row], table: Sequence[Row], axes: Sequence[Axis]
) -> str:
    environment = Environment(
        loader=PackageLoader("fieldmark.simulations.sweeping", ""),
        autoescape=select_autoescape(default=True, default_for_string=True),
        finalize=visible_lines,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(share=share, number=number, points=in_points)
    style = report_style()
    score = score_of(rows)
    return environment.get_template("page.html.j2").render(
        style=Markup(style),
        name=result["name"],
        seeds=result["seeds"],
        axes=axes,
        table=table,
        score=score,
        score_name=SCORES[score],
        in_words=result["in_words"],
        best=next((e for e in table if (e["against_best"] or {}).get("told") == BEST), None),
        leading=[e for e in table if (e["against_best"] or {}).get("told") in (BEST, NOT_APART)],
        rows=rows[:RUNS_SHOWN],
        rows_left=max(len(rows) - RUNS_SHOWN, 0),
        done=sum(row["state"] == "done" for row in rows),
        failed=[row for row in rows if row["state"] == "failed"],
        waiting=sum(row["state"] == "waiting" for row in rows),
        private=any(row["epsilon"] is not None for row in rows),
        spent=sum(row["epsilon"] or 0.0 for row in rows),
        views=[(v.heading, Markup(v.svg), v.legend) for v in views(rows, table, axes)],
    )


def share(mean: float | None, deviation: float | None = None) -> str:
    """``81.2 ± 0.4 %``, or a dash."""
    if mean is None:
        return "–"
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    return f"{100 * mean:.1f}{spread}\N{NO-BREAK SPACE}%"


def number(mean: float | None, deviation: float | None = None, scale: float = 1.0) -> str:
    """Three digits and the deviation, if it is above a thousandth; or a dash."""
    if mean is None:
        return "–"
    spread = f" ± {deviation / scale:.2g}" if deviation and deviation > mean / 1000 else ""
    digits = 0 if mean / scale >= 100 else 1 if mean / scale >= 10 else 2
    text = f"{mean / scale:,.{digits}f}" if mean >= scale else f"{mean / scale:.3g}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + spread


def short_names(keys: Sequence[str]) -> list[str]:
    """Keys without their sections, if they stay distinct.

    >>> short_names(["partition.alpha", "train.lr"])
    ['alpha', 'lr']
    """
    short = [key.rpartition(".")[2] for key in keys]
    return short if len(set(short)) == len(short) else list(keys)
