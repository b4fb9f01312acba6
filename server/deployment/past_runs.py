"""Runs of a coordinator with their curves and outcome, for its page and ``server status``."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from fgvc_core.files import read_json
from fieldmark.server.deployment.following import RunView, view_of
from fieldmark.server.deployment.run_request import read_run_request

MOST_SHOWN = 8
"""Most past runs that are read and shown."""

PRESENT = frozenset({"arrived", "replied", "training", "registered"})
"""States of sites that take part in a run, or of which nothing is known yet."""


def past_runs(folder: Path, current: Path | None) -> list[dict[str, Any]]:
    """The latest runs that have ended, the last first, each as by :func:`run_in_short`.

    Args:
        folder: The coordinator's.
        current: A run that is shown elsewhere, or None.
    """
    files = (folder / "runs").glob("*/coordinator/conduct.json")
    ended = [
        (path.stat().st_mtime, path.parents[1])
        for path in files
        if current is None or path.parents[1] != current
    ]
    return [run_in_short(run_dir, when) for when, run_dir in sorted(ended)[::-1][:MOST_SHOWN]]


def run_in_short(run_dir: Path, when: float) -> dict[str, Any]:
    """What a run came to.

    Args:
        run_dir: Its folder.
        when: Time of its last change of state, in seconds since 1970.
    """
    request, view = read_run_request(run_dir), _view(run_dir)
    metrics = _read(run_dir / "metrics.json")
    contributed = sum(site.rounds > 0 for site in view.sites.values())
    report = run_dir / "report.html"
    return {
        "name": run_dir.name,
        "state": request.state,
        "why": _in_words(request.why),
        "ended": round(when, 1),
        "round": view.round,
        "rounds": view.rounds,
        "top1": metrics.get("top1"),
        "asked": len(view.sites),
        "contributed": contributed,
        "not_contributed": metrics.get("not_contributed", {}),
        "refused": sum(site.refused for site in view.sites.values()),
        "history": list(view.history.values()),
        "report": f"runs/{run_dir.name}/{report.name}" if report.is_file() else None,
    }


def absent(view: RunView | None) -> list[dict[str, str]]:
    """Sites that wait, are waited for, or were refused in a run, each with the reason."""
    if view is None:
        return []
    return [
        {"site": name, "state": site.state, "reason": site.reason}
        for name, site in view.sites.items()
        if site.state not in PRESENT
    ]


def _in_words(why: str) -> str:
    """How a run ended, without the name of the error's class."""
    kind, _, text = why.partition(": ")
    return text if kind.isidentifier() and text else why


def _view(run_dir: Path) -> RunView:
    try:
        found = (run_dir / "events.jsonl").stat()
    except OSError:
        return RunView()
    return _view_as_of(run_dir, found.st_mtime_ns, found.st_size)


# A page that looks again every few seconds, or Prometheus, does not read ended runs each time.
@lru_cache(maxsize=2 * MOST_SHOWN)
def _view_as_of(run_dir: Path, changed: int, size: int) -> RunView:
    return view_of(run_dir)


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path)
    return found if isinstance(found, dict) else {}
