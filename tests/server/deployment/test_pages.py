"""The status page and the metrics: read only, escaped, and what Prometheus expects."""

import re

import pytest
from starlette.testclient import TestClient

from fgvc_core.files import replace_private_json
from fgvc_core.protocol.keys import new_key, public_text
from fgvc_core.supervision import alone
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.pages import make_app, metrics_text
from fieldmark.server.deployment.provisioning import init_server
from fieldmark.server.deployment.run_request import RunRequest, write_run_request
from fieldmark.server.deployment.settings import DeploymentSettings
from fieldmark.server.deployment.status import read_status
from fieldmark.server.run_log.events import EventLog

LINE = re.compile(r'fieldmark_[a-z_]+(\{([a-z]+="(\\.|[^"\\])*",?)+\})? -?[0-9.e+-]+')


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "fed"
    init_server(folder, DeploymentSettings(name="<b>birds</b>", hosts=("gate",)))
    AllowList(folder).add("lyon", public_text(new_key().public_key()))
    run_dir = folder / "runs" / "demo"
    (run_dir / "coordinator").mkdir(parents=True)
    write_run_request(run_dir, RunRequest(state="running", tries=1))
    log = EventLog(run_dir / "events.jsonl")
    log.emit("run_started", sites=["lyon"], rounds=3)
    log.emit("round_started", round=1, cohort=["lyon"])
    log.emit("reply", round=1, kind="train", site="lyon", accepted=False,
             reason='<script>alert("x")</script>', bytes_up=0, bytes_down=9)  # fmt: skip
    log.emit("round_finished", round=1, seconds=2.5)
    replace_private_json(
        folder / "state" / "gateway.json",
        {"last_seen": {"lyon": 0.0}, "bytes_in": {"lyon": 5}, "bytes_out": {"lyon": 7},
         "refusals": [['a "path" that\nis not', 404, 3]]},
    )  # fmt: skip
    return folder


def client(folder, host="127.0.0.1:8765"):
    return TestClient(make_app(folder), base_url=f"http://{host}")


@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics"])
@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8765", ""]
)
def test_who_asks_for_another_host_is_told_nothing(folder, path, host):
    answer = client(folder).get(path, headers={"host": host})
    assert answer.status_code == 400
    assert "lyon" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "localhost:8765"])
def test_who_asks_for_this_machine_is_answered(folder, host):
    assert client(folder, host).get("/status.json").json()["sites"].keys() == {"lyon"}


def test_the_page_shows_sites_and_run_and_lets_no_text_of_theirs_become_markup(folder):
    answer = client(folder).get("/")
    assert answer.status_code == 200
    assert "lyon" in answer.text
    assert "round 1 of 3" in answer.text
    assert "<script>" not in answer.text
    assert "<b>birds" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("method", ["post", "put", "delete"])
@pytest.mark.parametrize("path", ["/", "/metrics", "/status.json"])
def test_nothing_can_be_changed_by_it(folder, method, path):
    assert getattr(client(folder), method)(path).status_code == 405


def test_every_metric_line_is_one_that_prometheus_reads(folder):
    lines = metrics_text(read_status(folder)).splitlines()
    values = [line for line in lines if not line.startswith("#")]
    assert all(LINE.fullmatch(line) for line in values), values
    assert "fieldmark_up 0.0" in values
    assert 'fieldmark_rounds_total{run="demo"} 1.0' in values
    assert 'fieldmark_site_refusals_total{site="lyon"} 1.0' in values
    assert 'fieldmark_site_received_bytes_total{site="lyon"} 5.0' in values
    described = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {re.split(r"[{ ]", line)[0] for line in values} <= described


def test_the_same_as_plain_values(folder):
    with alone(folder, "The coordinator"):
        found = client(folder).get("/status.json").json()
    assert found["sites"]["lyon"]["in_run"]["refused"] == 1
    assert found["run"]["state"] == "running"
