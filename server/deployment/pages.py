"""The status page and the Prometheus metrics, read-only, on loopback.

``/`` for a person, ``/status.json`` for a program, ``/metrics`` for Prometheus
(https://prometheus.io/docs/instrumenting/exposition_formats/). Run as a separate process:
``python -m fieldmark.server.deployment.pages DIR``.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from jinja2 import Environment, PackageLoader
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fgvc_core.files import read_json
from fgvc_core.words import visible_lines
from fieldmark.server.deployment.status import read_status

LOOPBACK = "127.0.0.1"
HOSTS = [LOOPBACK, "localhost"]
"""Accepted Host headers; any other is refused (DNS rebinding)."""
_SAFE = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


def make_app(folder: Path) -> Starlette:
    """The web application of a coordinator's folder."""
    environment = Environment(
        loader=PackageLoader("fieldmark.server.deployment", ""),
        autoescape=True,
        finalize=visible_lines,
    )

    def page(request: Request) -> Response:
        text = environment.get_template("status.html.j2").render(s=read_status(folder))
        return HTMLResponse(text, headers=_SAFE)

    def plain(request: Request) -> Response:
        return JSONResponse(read_status(folder), headers=_SAFE)

    def metrics(request: Request) -> Response:
        text = "\n".join(metric_lines(read_status(folder))) + "\n"
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[Route("/", page), Route("/status.json", plain), Route("/metrics", metrics)],
        # Against DNS rebinding: a foreign page whose name resolves to this machine reads nothing.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)],
    )


def metric_lines(status: dict[str, Any]) -> Iterator[str]:
    """A state as Prometheus reads it."""
    yield from _metric("up", "gauge", "Whether the coordinator is up.", [({}, int(status["up"]))])
    serving = int(status["superlink"] == "serving")
    yield from _metric(
        "superlink_serving", "gauge", "Whether the SuperLink says that it serves.", [({}, serving)]
    )
    days = status["certificate"]["days"]
    yield from _metric(
        "certificate_days", "gauge", "Days that the certificate has left.",
        [({}, -1 if days is None else days)],
    )  # fmt: skip
    processes = (status["processes"] or {}).items()
    yield from _metric(
        "restarts_total", "counter", "Restarts of a process.",
        [({"process": name}, p["restarts"]) for name, p in processes],
    )  # fmt: skip
    sites = status["sites"].items()
    for name, kind, text, key in (
        ("site_online", "gauge", "Whether a site's node is online.", "online"),
        ("site_received_bytes_total", "counter", "Bytes from a site.", "bytes_in"),
        ("site_sent_bytes_total", "counter", "Bytes to a site.", "bytes_out"),
        ("site_last_seen_seconds", "gauge", "Seconds since a site was seen.", "last_seen_s"),
    ):
        rows = [({"site": s}, v[key]) for s, v in sites if v[key] is not None]
        yield from _metric(name, kind, text, [(labels, float(value)) for labels, value in rows])
    within = [(s, v["in_run"]) for s, v in sites if v["in_run"]]
    yield from _metric(
        "site_refusals_total", "counter", "Replies of a site that were refused in the run.",
        [({"site": s}, v["refused"]) for s, v in within],
    )  # fmt: skip
    yield from _metric(
        "gateway_refusals_total", "counter", "Requests that the gateway refused.",
        [({"what": r["what"], "status": str(r["status"])}, r["count"]) for r in status["refusals"]],
    )  # fmt: skip
    run = status["run"]
    if run is not None:
        label = {"run": run["name"]}
        yield from _metric("rounds_total", "counter", "Rounds done.", [(label, run["round"])])
        yield from _metric("run_tries_total", "counter", "Flower runs.", [(label, run["tries"])])
        if run["round_seconds"] is not None:
            seconds = [(label, run["round_seconds"])]
            yield from _metric("round_seconds", "gauge", "Seconds of the last round.", seconds)


def _metric(
    name: str, kind: str, text: str, rows: list[tuple[dict[str, str], float]]
) -> Iterator[str]:
    yield f"# HELP fieldmark_{name} {text}"
    yield f"# TYPE fieldmark_{name} {kind}"
    for labels, value in rows:
        listed = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        braced = f"{{{listed}}}" if listed else ""
        yield f"fieldmark_{name}{braced} {_number(value)}"


def _number(value: float) -> str:
    """Every digit of it: a count of bytes soon has more than a few."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _escaped(label: str) -> str:
    shown = str(visible_lines(label)).replace("\\", "\\\\").replace('"', '\\"')
    return shown.replace("\n", "\\n")


def main() -> None:
    """Entry point of the process."""
    folder = Path(sys.argv[1])
    port = int(read_json(folder / "state" / "ports.json")["pages"])
    uvicorn.run(make_app(folder), host=LOOPBACK, port=port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
