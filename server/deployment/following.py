"""Monitoring of a run from another process, by its event log."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgvc_core.errors import ConfigurationError, FieldmarkError, PolicyRefusal, RunFailed
from fgvc_core.supervision import holder
from fieldmark.server.deployment.run_request import ACTIVE, read_run_request

POLL_S = 0.2
_ANSWERED = ("awaits approval", "not admitted", "set aside", "removed")


@dataclass
class SiteView:
    """State of one site according to a run's events."""

    state: str = "registered"
    reason: str = ""
    rounds: int = 0
    refused: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    version: str = ""
    code: str = ""


@dataclass
class RunView:
    """State of a run according to its events, updated one at a time."""

    round: int = 0
    rounds: int = 0
    sites: dict[str, SiteView] = field(default_factory=dict)
    refusals: list[dict[str, Any]] = field(default_factory=list)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Round -> its ``round``, ``top1`` (held-out test), ``val_top1`` (sites) and ``loss``."""
    last: dict[str, Any] | None = None
    waiting: dict[str, int] | None = None
    """While the run is below its quorum: sites that are ``present``, and that are ``needed``."""
    _counted: list[str] = field(default_factory=list)
    """Sites of the accepted replies since a round last ended."""

    def fold(self, event: dict[str, Any]) -> None:
        """Update with one event."""
        kind = event["event"]
        if kind == "run_started":
            self.rounds = event["rounds"]
            for name in event["sites"]:
                self.sites.setdefault(name, SiteView())
        elif kind == "roll_call":
            self._roll_call(event)
        elif kind == "awaiting_approval":
            self._site(event["site"]).state = "awaits approval"
        elif kind == "waiting_for_sites":
            self.waiting = {"present": len(event["present"]), "needed": event["needed"]}
            for name, why in event["waiting_for"].items():
                site = self._site(name)
                site.reason = why
                # Who has answered is not waited for, and what it answered stays to be seen.
                if site.state not in _ANSWERED:
                    site.state = "waited for"
        elif kind == "site_left":
            self._site(event["site"]).state = event["why"]
        elif kind == "round_started":
            self.waiting = None
            for name in event["cohort"]:
                self._site(name).state = "training"
        elif kind == "reply":
            self._reply(event)
        elif kind == "site_set_aside":
            site = self._site(event["site"])
            # Its last reply may have been accepted before the comparison with other sites.
            site.state, site.reason = "set aside", event["reason"]
            self.refusals.append(event)
        elif kind == "round_void":
            # Nothing of it is in the model; the round begins anew.
            for name in self._counted:
                self.sites[name].rounds -= 1
            self._counted.clear()
        elif kind == "round_finished":
            self._counted.clear()
            self.round, self.last = event["round"], event
            scores = {name: event.get(name) for name in ("top1", "val_top1", "loss")}
            self.history[event["round"]] = {"round": event["round"], **scores}
        elif kind == "scored" and event.get("round") in self.history:
            self.history[event["round"]]["val_top1"] = event["val_top1"]

    def _site(self, name: str) -> SiteView:
        return self.sites.setdefault(name, SiteView())

    def _roll_call(self, event: dict[str, Any]) -> None:
        if event["accepted"]:
            site = self._site(event["site"])
            site.state, site.reason = "arrived", ""
            site.version, site.code = event.get("version", ""), event.get("code_digest", "")
        else:
            self.refusals.append(event)
            if event.get("proven"):
                site = self._site(event["proven"])
                site.state, site.reason = "not admitted", event["reason"]
            elif event.get("registered"):
                site = self._site(event["registered"])
                silent = event["reason"].startswith("No answer")
                site.state = "no answer" if silent else "not admitted"
                site.reason = "" if silent else event["reason"]

    def _reply(self, event: dict[str, Any]) -> None:
        site = self._site(event["site"])
        site.bytes_up += event["bytes_up"]
        site.bytes_down += event["bytes_down"]
        if event["accepted"]:
            site.state, site.reason = "replied", ""
            if event["kind"] != "score":
                site.rounds += 1
                self._counted.append(event["site"])
        else:
            site.state, site.reason = "refused", event["reason"]
            site.refused += 1
            self.refusals.append(event)


def events_of(run_dir: Path) -> Iterator[dict[str, Any] | None]:
    """Events as they are written, from the first; None each time the end is reached."""
    path, position, rest = run_dir / "events.jsonl", 0, ""
    while True:
        text = ""
        if path.exists():
            with path.open(encoding="utf-8") as file:
                file.seek(position)
                text = file.read()
                position = file.tell()
        rest += text
        *lines, rest = rest.split("\n")
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                # A process died in the middle of this line, and the next one appended to it.
                continue
        yield None


def view_of(run_dir: Path) -> RunView:
    """The current state of a run according to its events."""
    view = RunView()
    for event in events_of(run_dir):
        if event is None:
            return view
        view.fold(event)
    return view


def follow(folder: Path, run_dir: Path, tell: Callable[[dict[str, Any], RunView], None]) -> None:
    """Follow a run to its end; Ctrl-C leaves it running.

    Args:
        folder: The coordinator's.
        run_dir: The run's.
        tell: Called with each event and the state after it.

    Raises:
        FieldmarkError: if the run failed, with its exit code.
    """
    view = RunView()
    events = events_of(run_dir)
    while True:
        for event in events:
            if event is None:
                break
            view.fold(event)
            tell(event, view)
        request = read_run_request(run_dir)
        if request.state not in ACTIVE:
            break
        if holder(folder.resolve()) is None:
            raise ConfigurationError(
                "The coordinator is not up any more; the run waits for it.",
                remedy=f"fieldmark server up {folder} goes on with it.",
            )
        time.sleep(POLL_S)
    for event in events:
        if event is None:
            break
        view.fold(event)
        tell(event, view)
    raise_outcome(run_dir)


def raise_outcome(run_dir: Path) -> None:
    """Raise the error with which a run ended, if any."""
    request = read_run_request(run_dir)
    if request.state == "finished":
        return
    kind, _, text = request.why.partition(": ")
    if not kind.isidentifier():
        kind, text = "", request.why
    error: type[FieldmarkError] = PolicyRefusal if kind == "PolicyRefusal" else RunFailed
    raise error(
        f"The run '{run_dir.name}' {request.state}: {text or request.why}",
        remedy=f"Its events are in {run_dir / 'events.jsonl'}; "
        # The coordinator's folder holds runs/NAME.
        f"go on with: fieldmark server resume {run_dir.parents[1]} {run_dir.name}",
    )
