"""The metrics as Prometheus scrapes them from their process, held against the events."""

import json
import re
from collections import Counter
from pathlib import Path

import httpx
import pytest
from pages_lab import SITES, busy_folder, served
from prometheus import parse

from fgvc_core.files import read_json, replace_private_json
from fieldmark.server.deployment.pages import metrics_text
from fieldmark.server.deployment.status import read_status


@pytest.fixture(scope="module")
def scraped(tmp_path_factory):
    """(coordinator's folder, name without prefix -> metric) of one scrape of the real process."""
    folder = busy_folder(tmp_path_factory.mktemp("metrics") / "fed")
    with served(folder) as address, httpx.Client(trust_env=False, timeout=60) as client:
        answer = client.get(f"{address}metrics", headers={"accept": "text/plain;version=0.0.4"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = parse(answer.text)
    assert all(name.startswith("fieldmark_") for name in found)
    return folder, {name.removeprefix("fieldmark_"): metric for name, metric in found.items()}


def by_site(metric):
    return {dict(labels)["site"]: value for labels, value in metric.samples.items()}


def events(folder):
    lines = (folder / "runs" / "birds" / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_rounds_and_their_seconds_are_those_of_the_events(scraped):
    folder, metrics = scraped
    (last,) = [e for e in events(folder) if e["event"] == "round_finished"]
    run = (("run", "birds"),)
    assert metrics["rounds_total"].samples == {run: last["round"]}
    assert metrics["round_seconds"].samples == {run: last["seconds"]}
    assert metrics["run_tries_total"].samples == {run: 2}


def test_refusals_are_those_of_the_events_and_of_the_gateway(scraped):
    folder, metrics = scraped
    refused = Counter(e["site"] for e in events(folder)
                      if e["event"] == "reply" and not e["accepted"])  # fmt: skip
    assert refused
    assert by_site(metrics["site_refusals_total"]) == {name: refused[name] for name in SITES}
    counted = read_json(folder / "state" / "gateway.json")["refusals"]
    assert metrics["gateway_refusals_total"].samples == {
        (("status", str(status)), ("what", what)): count for what, status, count in counted
    }


def test_bytes_are_the_gateways_to_the_last_one(scraped):
    folder, metrics = scraped
    counts = read_json(folder / "state" / "gateway.json")
    for name, key in (("site_received_bytes_total", "bytes_in"),
                      ("site_sent_bytes_total", "bytes_out")):  # fmt: skip
        assert by_site(metrics[name]) == {**counts[key], "never-seen": 0}


def test_every_metric_is_typed_described_and_a_counter_is_called_one(scraped):
    _, metrics = scraped
    for name, metric in metrics.items():
        assert metric.kind in ("counter", "gauge")
        assert metric.text
        assert (metric.kind == "counter") == name.endswith("_total")
        assert metric.samples, name


def test_every_documented_metric_is_scraped_and_every_scraped_one_documented(scraped):
    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    assert {f"fieldmark_{name}" for name in scraped[1]} == set(
        re.findall(r"`(fieldmark_\w+)`", text)
    )


@pytest.mark.parametrize("name", ['a "quoted" \\ path\nof two lines', "}", 'x="1",', "\\n"])
def test_what_a_stranger_names_is_read_back_as_it_was(tmp_path, name):
    folder = busy_folder(tmp_path / "fed")
    replace_private_json(folder / "state" / "gateway.json", {"refusals": [[name, 404, 7]]})
    found = parse(metrics_text(read_status(folder)))
    labels = (("status", "404"), ("what", name))
    assert found["fieldmark_gateway_refusals_total"].samples == {labels: 7}


@pytest.mark.parametrize(
    "text",
    ["x 1", "x 1\n", "# TYPE x counter\nx{a=\"b\"} 1\nx{a=\"b\"} 2\n", "# TYPE x colour\nx 1\n",
     "# TYPE x counter\nx{a=b} 1\n", "# TYPE x counter\nx one\n"],
)  # fmt: skip
def test_the_reader_itself_takes_nothing_that_is_not_in_the_format(text):
    with pytest.raises(ValueError, match=r".+"):
        parse(text)
