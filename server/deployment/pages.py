"""The status page and the Prometheus metrics, read-only, on loopback.

``/`` for a person, ``/status.json`` for a program, ``/metrics`` for Prometheus
(https://prometheus.io/docs/instrumenting/exposition_formats/). Run as a separate process:
``python -m fieldmark.server.deployment.pages DIR``.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from markupsafe import Markup
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fgvc_core.files import read_json
from fgvc_core.local_pages import PLAIN, LocalPage, only_this_machine
from fgvc_core.quiet_server import be_quiet
from fgvc_core.sockets import LOOPBACK
from fgvc_core.words import counted, visible_lines
from fieldmark.server.deployment.status import read_status
from fieldmark.server.report.charts import Curve, curves

AGAIN_S = 5
"""Interval at which the page looks again by itself, in seconds."""


def make_app(folder: Path) -> Starlette:
    """The web application of a coordinator's folder."""
    page = LocalPage("fieldmark.server.deployment", "status.html.j2")

    def look(request: Request) -> Response:
        return page.answer(s=read_status(folder), curve=run_curve, again_s=AGAIN_S)

    def plain(request: Request) -> Response:
        return JSONResponse(read_status(folder), headers=PLAIN)

    def metrics(request: Request) -> Response:
        text = metrics_text(read_status(folder))
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[Route("/", look), Route("/status.json", plain), Route("/metrics", metrics)],
        middleware=[only_this_machine()],
    )


def run_curve(name: str, history: Sequence[dict[str, Any]]) -> Markup | None:
    """Scores of a run over its rounds as SVG, else its training loss; None if it has neither."""
    rounds = max((entry["round"] for entry in history), default=0)
    by_round = {entry["round"]: entry for entry in history}

    def values(key: str) -> list[float | None]:
        return [by_round.get(number, {}).get(key) for number in range(1, rounds + 1)]

    lines = [Curve("held-out test", "first", values("top1")),
             Curve("sites' validation", "second", values("val_top1"))]  # fmt: skip
    shown = [line for line in lines if any(v is not None for v in line.values)]
    if shown:
        last = [f"{line.name} {100 * _last(line):.1f} %" for line in shown]
        told = f"Top-1 of run {name} over {counted(rounds, 'round')}; last: {', '.join(last)}"
        return Markup(curves(told, shown, shares=True))
    loss = Curve("mean training loss, nats", "third", values("loss"))
    if all(value is None for value in loss.values):
        return None
    told = f"Mean training loss of run {name} over {counted(rounds, 'round')}; "
    told += f"last: {_last(loss):.3g} nats"
    return Markup(curves(told, [loss]))


def _last(line: Curve) -> float:
    return float(next(value for value in reversed(line.values) if value is not None))


def metrics_text(status: dict[str, Any]) -> str:
    """The state in Prometheus' text format, version 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(tuple(_families(status))))
    return generate_latest(registry).decode()


class _Snapshot(Collector):
    """Metrics of one moment: nothing is counted in this process."""

    def __init__(self, families: tuple[Metric, ...]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(status: dict[str, Any]) -> Iterator[Metric]:
    yield _gauge("up", "Whether the coordinator is up.", [({}, status["up"])])
    serving = status["superlink"] == "serving"
    yield _gauge("superlink_serving", "Whether the SuperLink says that it serves.", [({}, serving)])
    days = status["certificate"]["days"]
    yield _gauge(
        "certificate_days", "Days that the certificate has left.",
        [({}, -1 if days is None else days)],
    )  # fmt: skip
    processes = (status["processes"] or {}).items()
    yield _counter(
        "restarts", "Restarts of a process.",
        [({"process": name}, p["restarts"]) for name, p in processes],
    )  # fmt: skip
    sites = status["sites"].items()
    for family, name, text, key in (
        (_gauge, "site_online", "Whether a site's node is online.", "online"),
        (_counter, "site_received_bytes", "Bytes from a site.", "bytes_in"),
        (_counter, "site_sent_bytes", "Bytes to a site.", "bytes_out"),
        (_gauge, "site_last_seen_seconds", "Seconds since a site was seen.", "last_seen_s"),
    ):
        yield family(name, text, [({"site": s}, v[key]) for s, v in sites if v[key] is not None])
    yield _counter(
        "site_refusals", "Replies of a site that were refused in the run.",
        [({"site": s}, v["in_run"]["refused"]) for s, v in sites if v["in_run"]],
    )  # fmt: skip
    yield _counter(
        "gateway_refusals", "Requests that the gateway refused.",
        [({"what": r["what"], "status": str(r["status"])}, r["count"]) for r in status["refusals"]],
    )  # fmt: skip
    run = status["run"]
    if run is not None:
        label = {"run": run["name"]}
        yield _counter("rounds", "Rounds done.", [(label, run["round"])])
        yield _counter("run_tries", "Flower runs.", [(label, run["tries"])])
        if run["round_seconds"] is not None:
            seconds = [(label, run["round_seconds"])]
            yield _gauge("round_seconds", "Seconds of the last round.", seconds)


Rows = list[tuple[dict[str, str], float]]
"""Label names and values, and the sample."""


def _gauge(name: str, text: str, rows: Rows) -> Metric:
    return _filled(GaugeMetricFamily(f"fieldmark_{name}", text, labels=_labels(rows)), rows)


def _counter(name: str, text: str, rows: Rows) -> Metric:
    return _filled(CounterMetricFamily(f"fieldmark_{name}", text, labels=_labels(rows)), rows)


def _labels(rows: Rows) -> list[str]:
    return list(rows[0][0]) if rows else []


def _filled(family: GaugeMetricFamily | CounterMetricFamily, rows: Rows) -> Metric:
    for labels, value in rows:
        family.add_metric([str(visible_lines(text)) for text in labels.values()], float(value))
    return family


def main() -> None:
    """Entry point of the process."""
    folder = Path(sys.argv[1])
    port = int(read_json(folder / "state" / "ports.json")["pages"])
    be_quiet()
    uvicorn.run(make_app(folder), host=LOOPBACK, port=port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
