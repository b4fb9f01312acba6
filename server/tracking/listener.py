"""The bridge from a run's events to trackers, which can neither stop nor slow the run.

Trackers work in their own thread, fed through a queue: importing MLflow takes seconds, and a disk
or a server can hang. An exception ends that tracker only; the run reports it once, in its events
and on the terminal. At the end of the run trackers have a bounded time to finish.
"""

import json
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvc_core.components import TRACKERS
from fgvc_core.recipe import Recipe
from fieldmark.server.tracking.choices import Choice
from fieldmark.server.tracking.tracker import (
    RunFacts,
    Tracker,
    final_figures,
    note_of,
    round_figures,
)

if TYPE_CHECKING:
    from fieldmark.server.run_log.events import EventLog

WAIT_S = 120.0
"""Longest wait for trackers at the end of a run, in seconds."""

Open = Callable[[Choice, RunFacts], Tracker]
Work = Callable[[Tracker], None]
_ENDS = {"run_finished": "finished", "interrupted": "interrupted", "failed": "failed"}


class Tracking:
    """Passes events of a :class:`~fieldmark.server.run_log.events.EventLog` to trackers.

    Args:
        choices: Which trackers, and where they write.
        run_dir: The run's folder.
        recipe: Its recipe.
        opened: Creates a tracker; called in the trackers' thread.
        wait_s: Longest wait at the end, in seconds.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        run_dir: Path,
        recipe: Recipe,
        opened: Open | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        self._choices = choices
        self._run_dir = run_dir
        self._recipe = recipe
        self._open = opened or open_tracker
        self._wait_s = wait_s
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._failed: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._events: EventLog | None = None
        self._round = 0

    def __call__(self, event: dict[str, Any]) -> None:
        """Pass on the content of an event."""
        what = event["event"]
        if not self._choices or what == "tracker_failed":
            return
        self._tell()
        if what in ("run_started", "resumed"):
            self._begin(str(event["run"]), int(event.get("round") or 0))
        if what in ("round_finished", "scored"):
            figures, number = round_figures(event), int(event["round"])
            self._round = number
            self._do(lambda tracker: tracker.figures(number, figures))
        note = note_of(event)
        if note is not None:
            at = int(event.get("round") or self._round)
            self._do(lambda tracker: tracker.note(at, note))
        if what in _ENDS:
            self._end(_ENDS[what])

    def report_to(self, events: "EventLog") -> None:
        """Set the event log in which failures of trackers are recorded."""
        self._events = events

    def _tell(self) -> None:
        while self._events is not None and not self._failed.empty():
            name, why = self._failed.get()
            self._events.emit("tracker_failed", round=self._round, tracker=name, reason=why)

    def _begin(self, run: str, done: int) -> None:
        facts = RunFacts(self._run_dir, self._recipe, run, done)
        self._round = done
        # A daemon thread, so a hanging tracker cannot keep the process alive.
        self._thread = threading.Thread(target=self._serve, args=(facts,), daemon=True)
        self._thread.start()

    def _do(self, work: Work) -> None:
        if self._thread is not None:
            self._work.put(work)

    def _end(self, state: str) -> None:
        if self._thread is None:
            return
        path = self._run_dir / "metrics.json"
        metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        values = final_figures(metrics) if state == "finished" else {}
        self._work.put(lambda tracker: tracker.finish(state, values))
        self._work.put(None)
        self._thread.join(self._wait_s)
        if self._thread.is_alive():
            told = f"it did not end within {self._wait_s:g} s"
            self._failed.put((", ".join(c.name for c in self._choices), told))
        self._thread = None
        self._tell()

    def _serve(self, facts: RunFacts) -> None:
        trackers: dict[str, Tracker] = {}
        for choice in self._choices:
            self._try(choice.name, partial(self._open_into, trackers, choice, facts))
        while (work := self._work.get()) is not None:
            for name, tracker in list(trackers.items()):
                if not self._try(name, partial(work, tracker)):
                    del trackers[name]

    def _open_into(self, trackers: dict[str, Tracker], choice: Choice, facts: RunFacts) -> None:
        trackers[choice.name] = self._open(choice, facts)

    def _try(self, name: str, do: Callable[[], None]) -> bool:
        try:
            do()
        except Exception as error:
            # A failing tracker must not stop the run.
            self._failed.put((name, f"{type(error).__name__}: {error}"[:500]))
            return False
        return True


def open_tracker(choice: Choice, facts: RunFacts) -> Tracker:
    """Open a tracker; its package is imported only here."""
    tracker: Tracker = TRACKERS.get(choice.name).make(choice.where, facts)
    return tracker
