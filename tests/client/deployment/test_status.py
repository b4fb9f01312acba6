"""What a site says of itself: what left, what it cost, what waits for a person."""

import json
import re
import time
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.errors import ConfigurationError
from fgvc_core.files import private_folder, replace_private_json
from fgvc_core.protocol.messages import seal
from fgvc_core.supervision import alone
from fieldmark.client.announced import remember
from fieldmark.client.deployment.lines import KEY_REFUSED
from fieldmark.client.deployment.node_log import NodeLog, Refused
from fieldmark.client.deployment.status import read_site_status
from fieldmark.client.job import Incoming
from fieldmark.client.job import answer as respond

from ..protected_sites import (
    COORDINATOR,
    announce,
    answer,
    ledger_of,
    make_site,
    opened,
    request,
    sums,
    with_policy,
)

SUMS = sums()


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path, epsilon_cap=8.0)


def announced(site, recipe, run):
    values = {"recipe": recipe.to_toml(), "class_names": ("jay", "wren"), "site": ""}
    remember(site.home, request(recipe, "roll_call", run, 0, **values), lambda run: False)


def roll_call(site, run):
    values = {"recipe": SUMS.to_toml(), "class_names": ("jay", "wren"), "site": ""}
    body = request(SUMS, "roll_call", run, 0, **values)
    return opened(site, respond(site.home, Incoming(seal(COORDINATOR, body), {})))


def told(site):
    done = CliRunner().invoke(fieldmark.cli.app, ["site", "status", str(site.home)])
    assert done.exit_code == 0, done.exception
    return re.sub(r"\s+", " ", done.output)


def test_a_new_site_has_sent_nothing_and_spent_nothing(site):
    found = read_site_status(site.home)
    assert (found["up"], found["run"], found["report"]) == (False, None, None)
    assert found["ever"] == {"replies": 0, "bytes": 0, "unprotected": 0}
    assert (found["budget"]["spent"], found["budget"]["left"]) == (0.0, 8.0)
    assert "site-1: not up" in told(site)


def test_it_counts_what_left_today_and_what_it_cost(site):
    announced(site, SUMS, "run-1")
    announce(site, SUMS, "run-1")
    for phase in ("centre", "class-sums"):
        answer(site, SUMS, request(SUMS, "release", "run-1", phase=phase))
    found = read_site_status(site.home)
    sent = [e.values for e in ledger_of(site).entries() if e.kind == "sent"]
    assert found["today"] == {
        "replies": 2, "bytes": sum(v["bytes"] for v in sent), "unprotected": 0,
    }  # fmt: skip
    assert found["today"] == found["ever"]
    assert (found["run"]["id"], found["run"]["round"], found["run"]["rounds"]) == ("run-1", 1, 1)
    assert found["budget"]["spent"] == pytest.approx(ledger_of(site).total(1e-6)[0], rel=0.5)
    assert "of 8 left" in told(site)


def test_a_full_disk_is_said_because_nothing_is_answered_then(site, monkeypatch):
    assert read_site_status(site.home)["no_room"] is None
    assert "NOTHING IS ANSWERED" not in told(site)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_000))
    home = site.home.resolve()
    assert f"NOTHING IS ANSWERED: the disk of '{home}' is full, and nothing leaves" in told(site)


def test_scores_alone_without_differential_privacy_count_as_unprotected(site):
    sent = {"round": 1, "request": "", "nonce": "", "code": "ok", "bytes": 9, "examples": 3}
    for what, tensors in (("train", {"w": "00"}), ("score", {})):
        shown = {"tensors": tensors, "scores": True, "protected": False}
        ledger_of(site).note("sent", {**sent, **shown, "run": "run-1", "what": what})
    found = read_site_status(site.home)
    assert found["ever"] == {"replies": 2, "bytes": 18, "unprotected": 2}
    assert found["ever"]["unprotected"] == found["budget"]["unprotected"]


def test_it_shows_what_waits_for_a_person_with_its_cost_and_what_was_refused(site):
    asking = with_policy(site, approval="each-run", epsilon_cap=8.0)
    announced(asking, SUMS, "run-7")
    ledger_of(asking).note(
        "refused", {"run": "run-6", "round": 2, "what": "train", "reason": "policy.expires\x1b[2J"}
    )
    found = read_site_status(asking.home)
    (pending,) = found["awaiting_approval"]
    assert pending["run"] == "run-7"
    assert found["refusals"][0]["reason"].startswith("policy.expires")
    said = told(asking)
    # The command means this recipe, whatever is announced under the run's name by then.
    asked = f"fieldmark site approve {asking.home} run-7 --digest {SUMS.digest[:32]}"
    assert f"waits for your approval: {asked}" in said
    assert "epsilon 2 at delta 1e-05 for each image; the total would be" in said
    assert "\x1b" not in said


def test_a_run_that_the_policy_refuses_does_not_wait_for_a_person(site):
    asking = with_policy(site, approval="each-run", epsilon_cap=0.1)
    assert roll_call(asking, "run-1").code == "refused-policy"
    found = read_site_status(asking.home)
    assert (found["awaiting_approval"], found["awaiting_more"]) == ([], 0)
    assert [refusal["run"] for refusal in found["refusals"]] == ["run-1"]
    assert "waits for your approval" not in told(asking)
    # The same run, resumed once the policy lets it in, waits for a person.
    raised = with_policy(asking, approval="each-run", epsilon_cap=8.0)
    assert roll_call(raised, "run-1").code == "awaiting-approval"
    assert [run["run"] for run in read_site_status(raised.home)["awaiting_approval"]] == ["run-1"]


def test_of_hundreds_of_waiting_runs_a_few_are_shown_and_the_rest_counted(site):
    asking = with_policy(site, approval="each-run", epsilon_cap=8.0)
    for number in range(30):
        announced(asking, SUMS, f"run-{number}")
    found = read_site_status(asking.home)
    assert (len(found["awaiting_approval"]), found["awaiting_more"]) == (5, 25)
    assert "25 earlier announced runs wait for your approval, too" in told(asking)


def test_it_says_that_a_site_is_up_and_since_when_it_is_connected(site):
    private_folder(site.home / "state")
    note = {"node_id": 7, "connected": time.time() - 7200}
    replace_private_json(site.home / "state" / "node.json", note)
    assert read_site_status(site.home)["connected_s"] is None
    with alone(site.home, "The site"):
        assert 7200 <= read_site_status(site.home)["connected_s"] < 7260
        assert "connected for 2 h" in told(site)


def test_it_says_why_a_site_that_is_up_is_not_connected(site):
    private_folder(site.home / "state")
    note = site.home / "state" / "node.json"
    said = []
    log = NodeLog(site, "fl:1", site.home / "ca", note, said.append, print, Refused(site))
    log.on_line(KEY_REFUSED)
    assert read_site_status(site.home)["trouble"] is None, "it is not up"
    with alone(site.home, "The site"):
        assert [read_site_status(site.home)["trouble"]] == said
        assert "not connected: the coordinator refuses this site: its key is not" in told(site)
        log.on_line("SuperNode ID: 7")
        assert read_site_status(site.home)["trouble"] is None


def test_it_writes_nothing(site):
    before = {p: p.stat().st_mtime_ns for p in site.home.rglob("*")}
    json.dumps(read_site_status(site.home))
    assert {p: p.stat().st_mtime_ns for p in site.home.rglob("*")} == before


def test_another_folder_is_no_site(tmp_path):
    with pytest.raises(ConfigurationError, match=r"site\.toml"):
        read_site_status(tmp_path)
