"""Tables of a sweep: one row per run, and per setting the mean and deviation over its seeds."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgvc_core.privacy.claims import read_claim
from fieldmark.simulations.sweeping.axes import Axis, Point

FIGURES = ("top1", "macro_f1", "sites_top1", "epsilon", "bytes", "rounds", "seconds")
"""Metrics of each run: accuracies from 0 to 1; the largest epsilon of any site; bytes both ways
over all rounds and sites; number of rounds; wall-clock seconds."""

FAILURES = "failures.json"
"""File in the sweep's folder that lists failed runs."""

Row = dict[str, Any]


def read_runs(points: Sequence[Point], out: Path) -> list[Row]:
    """One row per run: settings, seed, state (done, failed, waiting) and figures."""
    failures = read_failures(out)
    rows = []
    for point in points:
        metrics = finished(run_dir(out, point))
        failure = failures.get(point.name)
        state = "done" if metrics else "failed" if failure else "waiting"
        rows.append(
            {
                "run": point.name,
                "settings": point.settings,
                "seed": point.recipe.seed,
                "state": state,
                **(_figures(metrics) if metrics else dict.fromkeys(FIGURES)),
                "test_examples": metrics.get("test_examples") if metrics else None,
                "reason": failure["what"] if failure and not metrics else None,
            }
        )
    return rows


def summarise(rows: Iterable[Row]) -> list[Row]:
    """One row per setting: number of finished runs, mean and sample deviation of each figure.

    The deviation divides by n - 1, and is None for a single run.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row["settings"].values()), []).append(row)
    table = []
    for members in groups.values():
        entry: Row = {
            "settings": members[0]["settings"],
            "runs": len(members),
            "done": sum(row["state"] == "done" for row in members),
            "failed": sum(row["state"] == "failed" for row in members),
        }
        for name in FIGURES:
            values = [row[name] for row in members if row[name] is not None]
            entry[name] = float(np.mean(values)) if values else None
            entry[f"{name}_deviation"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        table.append(entry)
    return table


def runs_csv(rows: Sequence[Row], axes: Sequence[Axis]) -> str:
    """All runs as CSV."""
    keys = [axis.key for axis in axes]
    columns = ["run", *keys, "seed", "state", *FIGURES, "reason"]
    return _csv(columns, ({**row, **row["settings"]} for row in rows))


def table_csv(table: Sequence[Row], axes: Sequence[Axis]) -> str:
    """Means and deviations as CSV."""
    columns = [axis.key for axis in axes] + ["runs", "done", "failed"]
    columns += [column for name in FIGURES for column in (name, f"{name}_deviation")]
    return _csv(columns, ({**row, **row["settings"]} for row in table))


def _figures(metrics: dict[str, Any]) -> Row:
    # If one site has no valid epsilon, none bounds the run.
    held = read_claim(metrics).holds
    costs = [cost["epsilon"] for cost in metrics.get("privacy", {}).values()] if held else []
    own = [s["top1"] for s in metrics.get("sites", {}).values() if s.get("top1") is not None]
    return {
        "top1": metrics.get("top1"),
        "macro_f1": metrics.get("macro_f1"),
        "sites_top1": float(np.mean(own)) if own else None,
        "epsilon": max(costs) if costs else None,
        "bytes": metrics["bytes_up"] + metrics["bytes_down"],
        "rounds": metrics["rounds"],
        "seconds": metrics["wall_s"],
    }


def _csv(columns: list[str], rows: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if row[name] is None else row[name] for name in columns})
    return text.getvalue()


def run_dir(out: Path, point: Point) -> Path:
    """Folder of a point's run."""
    return out / "runs" / point.name


def read_failures(out: Path) -> dict[str, dict[str, Any]]:
    """Run's name -> ``what`` failed and its ``exit_code``."""
    path = out / FAILURES
    found: dict[str, dict[str, Any]] = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    )
    return found


def finished(folder: Path) -> dict[str, Any] | None:
    """A run's metrics if it is complete, else None."""
    path = folder / "metrics.json"
    if not path.is_file():
        return None
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    # The baseline is written last.
    ended = metrics.get("stopped") in ("rounds", "patience") and "pixel_baseline" in metrics
    return metrics if ended else None
