"""The tracker interface: metrics of a round, settings, and the end of a run."""

import json
from pathlib import Path
from typing import Any, Protocol

from fgvc_core.recipe import Recipe
from fgvc_core.words import visible

ROUND = ("top1", "macro_f1", "loss", "val_top1", "val_loss", "seconds", "bytes_up", "bytes_down",
         "cohort", "accepted", "refused")  # fmt: skip
"""Fields of ``round_finished`` and ``scored``: accuracies from 0 to 1, nats, seconds, bytes,
counts of sites."""

FINAL = ("top1", "macro_f1", "macro_precision", "macro_recall", "rounds", "best_round",
         "wall_s", "bytes_up", "bytes_down", "test_examples")  # fmt: skip
LONGEST = 500
"""Most characters of a setting; longer ones, such as a list of 200 classes, are cut."""


class RunFacts:
    """Facts about the run that a tracker receives when it opens.

    Args:
        run_dir: The run's folder.
        recipe: Its recipe.
        run: Fieldmark's id of the run; the same when it is resumed.
        done: Rounds that are done; entries of later ones are obsolete.
    """

    def __init__(self, run_dir: Path, recipe: Recipe, run: str, done: int) -> None:
        self.run_dir = run_dir
        self.name = run_dir.name
        self.project = recipe.name
        self.settings = settings_of(recipe)
        self.run = run
        self.done = done


class Tracker(Protocol):
    """Writes one run for one tool. An exception is reported and ends the tracker, not the run."""

    def figures(self, round_: int, values: dict[str, float]) -> None:
        """Log metrics of a round; one round may have several calls."""

    def note(self, round_: int, text: str) -> None:
        """Log an unusual event, in words."""

    def finish(self, state: str, values: dict[str, float]) -> None:
        """Log the end (``finished``, ``interrupted`` or ``failed``) and the final metrics."""


def round_figures(event: dict[str, Any]) -> dict[str, float]:
    """An event's metrics by name, without missing ones."""
    return {name: float(event[name]) for name in ROUND if event.get(name) is not None}


def final_figures(metrics: dict[str, Any]) -> dict[str, float]:
    """A run's final metrics, by ``final/NAME`` and ``epsilon/SITE``."""
    known = {f"final/{n}": float(metrics[n]) for n in FINAL if metrics.get(n) is not None}
    own = metrics.get("personal") or {}
    known |= {f"final/personal_{n}": float(own[n]) for n in ("top1", "gain") if n in own}
    costs = metrics.get("privacy", {})
    return known | {f"epsilon/{site}": float(cost["epsilon"]) for site, cost in costs.items()}


def settings_of(recipe: Recipe) -> dict[str, str]:
    """The recipe as flat key-value pairs, without local paths of pictures."""
    flat: dict[str, str] = {}

    def walk(values: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and value:
                walk(value, f"{prefix}{key}.")
            elif value is not None:
                text = value if isinstance(value, str) else json.dumps(value)
                flat[prefix + key] = text[:LONGEST]

    walk(recipe.model_dump(mode="json"), "")
    flat.pop("data.path", None)
    return flat


def note_of(event: dict[str, Any]) -> str | None:
    """An unusual event in words, else None."""
    what = event["event"]
    if what == "reply" and event["accepted"] is False:
        return visible(f"{event['site']} refused: {event['reason']}")
    if what == "waiting_for_sites":
        return visible(f"waiting for {', '.join(sorted(event['waiting_for']))}")
    if what in ("round_void", "site_set_aside", "screening_reset", "site_left", "start_refused"):
        told = [f"{event['site']}: "] if event.get("site") else []
        reason = event.get("reason") or event.get("why")
        return visible("".join([*told, what.replace("_", " "), f": {reason}" if reason else ""]))
    return None
