"""The status of a coordinator and its run, for people and as JSON."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from rich.table import Table

from fgvc_core import __version__
from fgvc_core.console import PlainConsole
from fgvc_core.errors import FieldmarkError
from fgvc_core.files import read_json
from fgvc_core.protocol.keys import fingerprint, short_form
from fgvc_core.supervision import holder
from fgvc_core.words import counted, visible
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.certificates import check_dates
from fieldmark.server.deployment.following import RunView, view_of
from fieldmark.server.deployment.health import superlink_health
from fieldmark.server.deployment.past_runs import absent, past_runs
from fieldmark.server.deployment.provisioning import coordinator_key
from fieldmark.server.deployment.run_request import ACTIVE, active_run, read_run_request
from fieldmark.server.deployment.settings import read_settings
from fieldmark.server.deployment.sockets import health_socket, superlink_address


def read_status(folder: Path) -> dict[str, Any]:
    """The status of a coordinator.

    Raises:
        ConfigurationError: if it is not a coordinator's folder.
    """
    folder = folder.resolve()
    settings = read_settings(folder)
    up = holder(folder) is not None
    run_dir = active_run(folder) or _latest(folder)
    view = None if run_dir is None else view_of(run_dir)
    counts = read_json(folder / "state" / "gateway.json") or {}
    ports = read_json(folder / "state" / "ports.json") or {}
    health = superlink_health(health_socket(folder)) if up else "down"
    nodes = _nodes(folder) if health == "serving" else {}
    return {
        "name": settings.name,
        "fingerprint": fingerprint(coordinator_key(folder)),
        "up": up,
        "superlink": health,
        "version": __version__,
        "address": f"{settings.hosts[0]}:{ports.get('gateway', settings.gateway.port)}",
        "certificate": _certificate(folder),
        "page": f"http://127.0.0.1:{ports['pages']}/" if up and "pages" in ports else None,
        "processes": _processes(folder) if up else {},
        "sites": {
            entry.name: _site(entry.name, entry.fingerprint, nodes, counts, view)
            for entry in AllowList(folder).active().values()
        },
        "run": None if run_dir is None else _run(run_dir, view, up),
        "past_runs": past_runs(folder, run_dir),
        "refusals": [
            {"what": what, "status": code, "count": count}
            for what, code, count in counts.get("refusals", [])
        ],
    }


def _site(
    name: str,
    key: str,
    nodes: dict[str, str],
    counts: dict[str, Any],
    view: RunView | None,
) -> dict[str, Any]:
    seen = counts.get("last_seen", {}).get(name)
    in_run = None if view is None else view.sites.get(name)
    return {
        "fingerprint": key,
        "online": nodes.get(key) == "online",
        "last_seen_s": None if seen is None else round(max(time.time() - seen, 0.0), 1),
        "bytes_in": counts.get("bytes_in", {}).get(name, 0),
        "bytes_out": counts.get("bytes_out", {}).get(name, 0),
        "in_run": None if in_run is None else asdict(in_run),
    }


def _processes(folder: Path) -> dict[str, Any]:
    """Services of the coordinator, each with the seconds since its start."""
    found = read_json(folder / "state" / "services.json") or {}
    now = time.time()
    return {
        name: {**process, "up_s": round(max(now - process.get("since", now), 0.0), 1)}
        for name, process in found.items()
    }


def _run(run_dir: Path, view: RunView | None, up: bool) -> dict[str, Any]:
    request = read_run_request(run_dir)
    checkpoint = read_json(run_dir / "checkpoints" / "last.json") or {}
    assert view is not None
    # A coordinator that was ended leaves its run's last state behind, and goes on with it.
    state = request.state if up or request.state not in ACTIVE else "interrupted"
    return {
        "name": run_dir.name,
        "folder": str(run_dir),
        "state": state,
        "waiting": view.waiting if state == "running" else None,
        "why": request.why,
        "tries": request.tries,
        "round": view.round,
        "rounds": view.rounds,
        "round_seconds": None if view.last is None else view.last["seconds"],
        "privacy": checkpoint.get("privacy", {}),
        "history": list(view.history.values()),
        "absent": absent(view),
        "refusals": [
            {"time": r["time"], "site": r.get("site"), "reason": r["reason"]}
            for r in view.refusals[-20:]
        ],
    }


def _nodes(folder: Path) -> dict[str, str]:
    """Fingerprint -> status according to the SuperLink; empty if it does not answer."""
    # Not at the top: the process of the pages is small until somebody opens one.
    from fieldmark.server.deployment.flower_internals import ControlApi

    try:
        api = ControlApi(superlink_address(folder), (folder / "state/loopback/ca.pem").read_bytes())
        return {node.fingerprint: node.status for node in api.nodes()}
    except (httpx.HTTPError, OSError, KeyError):
        return {}


def _certificate(folder: Path) -> dict[str, Any]:
    try:
        return {"days": check_dates(folder / "server.pem"), "error": None}
    except FieldmarkError as error:
        return {"days": None, "error": error.what}


def _latest(folder: Path) -> Path | None:
    found = [path.parents[1] for path in (folder / "runs").glob("*/coordinator/conduct.json")]
    return max(found, key=lambda p: (p / "coordinator/conduct.json").stat().st_mtime, default=None)


def show_status(found: dict[str, Any]) -> None:
    """Print a status for a person."""
    console = PlainConsole(highlight=False, soft_wrap=True)
    certificate = found["certificate"]
    until = certificate["error"] or f"certificate for {certificate['days']} days"
    up = "up" if found["up"] else "not up"
    link = f", SuperLink {found['superlink']}" if found["up"] else ""
    console.print(f"{found['name']} at {found['address']}: {up}{link}; {until}")
    if found["page"]:
        console.print(f"  page: {found['page']}")
    for name, process in (found["processes"] or {}).items():
        again = f", restarted {process['restarts']} times" if process["restarts"] else ""
        state = "down" if process["pid"] is None else f"pid {process['pid']}"
        console.print(f"  {name}: {state}{again}")
    table = Table()
    for column in ("site", "online", "seen", "in the run", "rounds", "refused", "MB up", "epsilon"):
        table.add_column(column)
    run = found["run"]
    for name, site in found["sites"].items():
        within = site["in_run"] or {}
        seen = site["last_seen_s"]
        stated = (run or {}).get("privacy", {}).get(name, {}).get("epsilon_total")
        table.add_row(
            name,
            "yes" if site["online"] else "no",
            "never" if seen is None else f"{seen:.0f} s ago",
            visible(within.get("state", "-")),
            str(within.get("rounds", "-")),
            str(within.get("refused", "-")),
            f"{site['bytes_in'] / 1e6:.1f}",
            "-" if stated is None else f"{stated:.3g}",
        )
    console.print(table)
    for name, site in found["sites"].items():
        # Not in the table, which would cut it on a narrow terminal.
        if reason := (site["in_run"] or {}).get("reason"):
            console.print(f"  {name}: {visible(reason)}")
    console.print(f"key of the coordinator: {short_form(found['fingerprint'])}")
    for name, site in found["sites"].items():
        console.print(f"key of {name}: {short_form(site['fingerprint'])}")
    if run is not None:
        why = f" ({visible(run['why'])})" if run["why"] else ""
        tried = f", started {run['tries']} times" if run["tries"] > 1 else ""
        state, waiting = run["state"], run["waiting"]
        if waiting is not None:
            there = counted(waiting["present"], "site is", "sites are")
            state = f"waiting for sites: {there} present, a round needs {waiting['needed']}"
        console.print(f"run {run['name']}: {state}{why}, round {run['round']} of "
                      f"{run['rounds']}{tried}")  # fmt: skip
        if run["state"] == "interrupted":
            console.print("  it goes on once the coordinator is up again: fieldmark server up")
    for past in found["past_runs"]:
        best = "" if past["top1"] is None else f", top-1 {100 * past['top1']:.1f} %"
        why = f" ({visible(past['why'])})" if past["state"] != "finished" else ""
        console.print(
            f"past run {past['name']}: {past['state']}{why}, {past['round']} of "
            f"{counted(past['rounds'], 'round')}, {past['contributed']} of "
            f"{counted(past['asked'], 'site')}{best}"
        )
    for refusal in found["refusals"]:
        console.print(
            f"refused {counted(refusal['count'], 'time')} ({refusal['status']}): "
            f"{visible(refusal['what'])}"
        )
