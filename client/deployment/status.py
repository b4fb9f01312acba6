"""The status of a site, for its engineer and its data-protection officer, in words and as JSON.

It is read from the home alone: ledger, announcements, and notes of the site's own processes. Nobody
is asked over the network, nothing is written, and nothing of it leaves the site.
"""

import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fgvc_core import __version__
from fgvc_core.console import PlainConsole
from fgvc_core.errors import FieldmarkError
from fgvc_core.files import read_json
from fgvc_core.protocol.keys import short_fingerprint
from fgvc_core.sockets import LOOPBACK
from fgvc_core.supervision import holder
from fgvc_core.words import visible
from fieldmark.client.announced import last_announcement
from fieldmark.client.deployment.lines import TROUBLE
from fieldmark.client.deployment.link import read_link
from fieldmark.client.deployment.page_token import PAGE_NOTE
from fieldmark.client.left_out import read_left_out
from fieldmark.client.own_heads import own_head_lines, read_own_heads
from fieldmark.client.privacy.approval import waiting_in_words, waiting_runs
from fieldmark.client.privacy.budget import read_budget
from fieldmark.client.privacy.chain import Entry
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.site import Site, no_room

LAST = 5
"""Number of latest refusals, and of latest decisions, shown."""
_REPORT = "privacy-report.html"


def read_site_status(
    home: Path, waiting: Callable[[Site], list[dict[str, Any]]] = waiting_in_words
) -> dict[str, Any]:
    """The status of a site; what ``site status`` prints and the site's page shows.

    Args:
        home: Its home.
        waiting: Reads the runs that wait for a person, if any do.

    Raises:
        ConfigurationError: if it is not a site's home.
        DataError: if its ledger does not verify.
    """
    site = Site.open(home)
    home = home.resolve()
    pid = holder(home)
    entries = Ledger(site.home, site.data_binding, site.name).entries()
    waits = waiting_runs(site)
    pending = waiting(site) if waits else []
    node = (read_json(home / "state" / "node.json") or {}) if pid is not None else {}
    report = home / _REPORT
    return {
        "name": site.name,
        "version": __version__,
        "key": short_fingerprint(site.key.public_key()),
        "coordinator": _address(home),
        "up": pid is not None,
        "pid": pid,
        "no_room": no_room(home),
        "connected_s": _since(node.get("connected")),
        "trouble": _trouble(home) if pid is not None and not node else None,
        "processes": (read_json(home / "state" / "services.json") or {}) if pid else {},
        "run": _run(home, entries),
        "approval": site.settings.policy.approval,
        "awaiting_approval": pending,
        "awaiting_more": max(len(waits) - len(pending), 0),
        "decisions": [
            {"time": e.time, "what": e.kind, "run": e.values["run"], "name": e.values["name"]}
            for e in [e for e in entries if e.kind in ("approved", "declined")][-LAST:]
        ],
        "today": _left(entries, datetime.now(UTC).date().isoformat()),
        "ever": _left(entries, ""),
        "budget": read_budget(site).as_json(),
        "refusals": [
            {"time": e.time, **{n: e.values[n] for n in ("run", "what", "reason")}}
            for e in [entry for entry in entries if entry.kind == "refused"][-LAST:]
        ],
        "left_out": read_left_out(home),
        "own_heads": read_own_heads(home),
        "report": str(report) if report.is_file() else None,
        "report_time": _written(report),
        "page": page_address(home),
    }


def page_address(home: Path) -> str | None:
    """Address of the site's page while a process serves it, else None."""
    note = read_json(home / "state" / PAGE_NOTE)
    try:
        os.kill(note["pid"], 0)
        return f"http://{LOOPBACK}:{note['port']}/"
    except (OSError, TypeError, KeyError):
        return None


def _written(path: Path) -> str | None:
    """When a file was written (UTC, ISO 8601 to the second); None if there is none."""
    if not path.is_file():
        return None
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")


def _address(home: Path) -> str | None:
    try:
        return read_link(home).address
    except FieldmarkError:
        # The home of a simulated site, which knows no address.
        return None


def _trouble(home: Path) -> str | None:
    """Why the site is not connected, as far as its node's log says it."""
    text = (read_json(home / "state" / TROUBLE) or {}).get("text")
    return text if isinstance(text, str) else None


def _since(when: object) -> float | None:
    return round(max(time.time() - when, 0.0), 1) if isinstance(when, int | float) else None


def _run(home: Path, entries: Sequence[Entry]) -> dict[str, Any] | None:
    """The last announced run, and the last round that this site has answered in it."""
    found = last_announcement(home)
    if found is None:
        return None
    run = found.run
    answered = [e for e in entries if e.kind == "sent" and e.values["run"] == run]
    rounds = [e.values["round"] for e in answered if e.values["code"] == "ok"]
    return {
        "id": run,
        "recipe": found.recipe,
        "announced_s": _since(found.announced),
        "round": max(rounds, default=0),
        "rounds": found.rounds,
        "last_reply": answered[-1].time if answered else None,
    }


def _left(entries: Sequence[Entry], day: str) -> dict[str, int]:
    """Replies with results that left on a day (UTC, ISO 8601; empty: ever), and their bytes."""
    sent = [
        e.values
        for e in entries
        if e.kind == "sent" and e.values["code"] == "ok" and e.time.startswith(day)
    ]
    return {
        "replies": sum(bool(values["tensors"]) or values["scores"] for values in sent),
        "bytes": sum(values["bytes"] for values in sent),
        "unprotected": sum(
            (bool(values["tensors"]) or values["scores"]) and not values["protected"]
            for values in sent
        ),
    }


def show_site_status(found: dict[str, Any], home: Path) -> None:
    """Print a status for a person."""
    console = PlainConsole(highlight=False, soft_wrap=True)
    connected = found["connected_s"]
    link = "not connected" if connected is None else f"connected for {_duration(connected)}"
    up = f"up as process {found['pid']}, {link}" if found["up"] else "not up"
    where = f" of the coordinator at {found['coordinator']}" if found["coordinator"] else ""
    console.print(f"{found['name']}{where}: {up}; Fieldmark {found['version']}")
    for name, process in found["processes"].items():
        again = f", restarted {process['restarts']} times" if process["restarts"] else ""
        state = "down" if process["pid"] is None else f"pid {process['pid']}"
        console.print(f"  {name}: {state}{again}")
    if found["trouble"]:
        console.print(visible(f"not connected: {found['trouble']}"))
    if found["no_room"]:
        console.print(visible(f"NOTHING IS ANSWERED: {found['no_room']}"))
    console.print(f"key:    {found['key']}")
    run = found["run"]
    if run is not None:
        console.print(
            f"run:    {run['id']} ({visible(run['recipe'])}), announced "
            f"{_duration(run['announced_s'])} ago; answered round {run['round']} of {run['rounds']}"
            + (f", last at {run['last_reply']}" if run["last_reply"] else "")
        )
    for name, left in (("today", found["today"]), ("ever", found["ever"])):
        bare = f", {left['unprotected']} of them unprotected" if left["unprotected"] else ""
        console.print(
            f"left {name + ':':6} {left['replies']} replies with results{bare}; "
            f"{left['bytes'] / 1e6:.2f} MB with all answers"
        )
    budget = found["budget"]
    left_of = (
        "no cap" if budget["left"] is None else f"{budget['left']:.3g} of {budget['cap']:g} left"
    )
    console.print(f"budget: epsilon {budget['spent']:.3g} at delta {budget['delta']:g}, {left_of}")
    for pending in found["awaiting_approval"]:
        asked = f"fieldmark site approve {home} {pending['arguments']}"
        console.print(f"waits for your approval: {asked}")
        for line in pending["in_words"]:
            console.print(f"  {visible(line)}")
    if found["awaiting_more"]:
        console.print(
            f"{found['awaiting_more']} earlier announced runs wait for your approval, too"
        )
    for decision in found["decisions"]:
        console.print(
            f"{decision['what']} {decision['time']}: run {decision['run']} "
            f"({visible(decision['name'])})"
        )
    for line in (*own_head_lines(found["own_heads"]), *left_out_lines(found["left_out"])):
        console.print(visible(line))
    for refusal in found["refusals"]:
        console.print(f"refused {refusal['time']}: {refusal['what']}: {visible(refusal['reason'])}")
    if found["page"]:
        console.print(f"page:   {found['page']} (fieldmark site page {home})")
    made = found["report"]
    console.print(f"report: {made}" if made else f"report: fieldmark site report {home} makes it")


def left_out_lines(found: dict[str, Any] | None) -> list[str]:
    """What was left out of the data at the last reading, one line for each reason."""
    if found is None:
        return ["left out: not known: no run and no 'site check' has read the data yet"]
    lines = [
        f"{title}: {row['count']} {row['reason']}: {', '.join(row['names'][:3])}"
        for title, rows in (("left out", found["left_out"]), ("not used", found["unused"]))
        for row in rows
    ]
    return lines or ["left out: nothing"]


def _duration(seconds: float) -> str:
    """A duration in the largest unit of which there are two."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
