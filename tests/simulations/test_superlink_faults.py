"""SIGKILL of every process in mid-round: the run ends whole, and says whom it lost."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from deployment_lab import Lab, models_inprocess

from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.site import Site

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

SITES = ["site-1", "site-2", "site-3"]
PLAIN = """
name = "tiny"
seed = 3
[data]
name = "fieldmarks"
image_size = 32
fieldmarks_train = 120
fieldmarks_test = 48
[partition]
scheme = "iid"
sites = 3
[model]
backbone = "fieldmark_nano"
[train]
batch_size = 16
epochs = 3
[federation]
rounds = 16
deadline_s = 300
quorum = 0.5
[evaluate]
pixel_baseline = false
"""
PROTECTED = (
    PLAIN.replace("rounds = 16", "rounds = 4")
    .replace("epochs = 3", "epochs = 1")
    .replace("deadline_s = 300", "deadline_s = 180")
    + """
[privacy]
epsilon = 6.0
delta = 1e-4
method = "gradients"
steps = 2
sampling_rate = 0.2
"""
)


def accepted_after(lab, site, round_):
    return [
        r
        for r in lab.events("reply")
        if r["site"] == site and r["accepted"] and r["round"] > round_
    ]


def hold_until_ready(lab, name, line):
    """No round ends until a service that was killed says its line again: the rest is not late."""
    with lab.busy("site-3"):
        lab.until(lambda: lab.lines(name).count(line) > 1, f"{name} is ready again")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One run in which everything is killed once; those first whose loss changes nothing."""
    folder = tmp_path_factory.mktemp("faults")
    facts = {}
    with Lab(folder, PLAIN, SITES) as lab, ThreadPoolExecutor(1) as beside:
        reference = beside.submit(models_inprocess, PLAIN, folder / "reference", SITES)
        lab.until_round(1)
        lab.until_round(2, begun=True)
        lab.kill(lab.child_of("site-1.runner"))
        lab.until_round(2)
        # A message that is being handed out in the instant of a death is lost for its round,
        # by Flower's design: here nothing is on its way, so nothing may be lost.
        lab.until_round(3, begun=True)
        with lab.at_work(3):
            lab.kill(lab.pid("gateway"))
        lab.until_round(3)
        lab.until_round(4, begun=True)
        with lab.at_work(4):
            lab.kill(lab.pid("superlink"))
        lab.until_round(4)
        lab.until_round(5, begun=True)
        lab.kill(lab.child_of("executor"))
        lab.until_round(5)
        facts["unharmed"] = lab.models()
        lab.until_round(7, begun=True)
        with lab.at_work(7):
            # It has the request: nobody else can answer it. And it is the first in order, whose
            # reply is looked for all the time: that its node was away is seen.
            lab.kill(lab.pid("site-1.supernode"))
        hold_until_ready(lab, "site-1.supernode", "SuperNode ID")
        lab.until(lambda: accepted_after(lab, "site-1", 7), "site-1 is back")
        now = lab.view().round
        lab.until_round(now + 1, begun=True)
        lab.child_of("site-1.runner")
        lab.kill(lab.pid("site-1.runner"))
        facts["runner lost in"] = now + 1
        hold_until_ready(lab, "site-1.runner", "ready")
        facts["conduct"] = lab.until_over()
        facts["in process"] = reference.result()
        facts["models"] = lab.models()
        facts["replies"] = lab.events("reply")
        facts["resumed"] = lab.events("resumed")
        facts["restarts"] = json.loads((lab.folder / "state" / "services.json").read_text())
        facts["metrics"] = json.loads((lab.run_dir / "metrics.json").read_text())
    return facts


def test_the_run_ends_with_the_right_number_of_rounds(plain):
    assert plain["conduct"].state == "finished", plain["conduct"]
    assert sorted(plain["models"]) == list(range(1, 17))
    assert plain["metrics"]["rounds"] == 16


def test_where_nobody_was_lost_the_bits_are_those_of_a_run_without_faults(plain):
    for number in range(1, 6):
        assert plain["unharmed"][number] == plain["in process"][number - 1], number


def test_a_dead_server_app_is_another_flower_run_of_the_same_run(plain):
    assert plain["conduct"].tries == 2
    assert [event["round"] for event in plain["resumed"]] == [4]


def test_whoever_was_killed_is_up_again(plain):
    for name in ("gateway", "superlink", "site-1.supernode", "site-1.runner"):
        assert plain["restarts"][name]["restarts"] >= 1, name


def test_a_site_that_was_lost_is_named_with_the_reason_and_comes_back(plain):
    lost = [r for r in plain["replies"] if not r["accepted"] and r["kind"] == "train"]
    assert {r["site"] for r in lost} == {"site-1"}
    assert 7 in {r["round"] for r in lost}
    assert all("error code" in r["reason"] for r in lost), lost


def test_a_site_whose_runner_died_gets_another_one_and_answers_again(plain):
    assert plain["restarts"]["site-1.runner"]["restarts"] >= 1
    # The message that died with the runner is given up by a restart of the node that holds it.
    assert plain["restarts"]["site-1.supernode"]["restarts"] >= 2
    answered = {r["round"] for r in plain["replies"] if r["site"] == "site-1" and r["accepted"]}
    assert max(answered) > plain["runner lost in"]


@pytest.fixture(scope="module")
def protected(tmp_path_factory):
    """A run under differential privacy; killed are a runner's child, the ServerApp, the link."""
    folder = tmp_path_factory.mktemp("protected")
    facts = {}
    with Lab(folder, PROTECTED, SITES) as lab:
        lab.until_round(1, begun=True)
        lab.kill(lab.child_of("site-1.runner"))
        lab.until_round(1)
        lab.until_round(2, begun=True)
        lab.child_of("site-2.runner")
        lab.kill(lab.child_of("executor"))
        lab.until_round(2)
        lab.until_round(3, begun=True)
        lab.kill(lab.pid("superlink"))
        facts["conduct"] = lab.until_over()
        facts["models"] = lab.models()
        facts["replies"] = lab.events("reply")
        sites = [Site.open(home) for home in lab.homes.values()]
        facts["ledgers"] = {
            s.name: [(e.kind, e.values) for e in Ledger(s.home, s.data_binding, s.name).entries()]
            for s in sites
        }
    return facts


def test_under_privacy_the_run_ends_whole(protected):
    assert protected["conduct"].state == "finished", protected["conduct"]
    assert sorted(protected["models"]) == [1, 2, 3, 4]


def reserved(entries):
    return [v for kind, v in entries if kind == "reserved"]


def sent(entries):
    return [v for kind, v in entries if kind == "sent" and v["what"] == "train"]


def test_no_answer_leaves_uncharged_and_none_is_charged_twice(protected):
    for site, entries in protected["ledgers"].items():
        charged = [v["request"] for v in reserved(entries)]
        assert len(charged) == len(set(charged)), site
        rounds = [v["round"] for v in reserved(entries)]
        assert len(rounds) == len(set(rounds)), site
        # In order, too: what left was charged before.
        paid = set()
        for kind, v in entries:
            if kind == "reserved":
                paid.add(v["request"])
            elif kind == "sent" and v["what"] == "train" and v["code"] == "ok":
                assert v["request"] in paid, (site, v["round"])


def test_every_round_is_accounted_for_and_what_counted_was_paid_for(protected):
    assert "site-2" in protected["ledgers"]
    for site, entries in protected["ledgers"].items():
        paid = {v["round"] for v in reserved(entries)}
        replies = [r for r in protected["replies"] if r["site"] == site and r["kind"] == "train"]
        counted = {r["round"] for r in replies if r["accepted"]}
        lost = {r["round"] for r in replies if not r["accepted"]}
        assert counted <= paid, site
        assert counted | lost == {1, 2, 3, 4}, site
        # A round without a charge is one whose request died with the SuperLink, and says so.
        assert {1, 2, 3, 4} - paid <= lost, site
        assert 1 in counted, site
        assert 2 in counted, site


def test_an_answer_that_was_asked_for_again_is_the_stored_one_and_costs_nothing(protected):
    # Site 2 was at work when the ServerApp died: the next one asks for round 2 again.
    entries = protected["ledgers"]["site-2"]
    answers = [v for v in sent(entries) if v["round"] == 2 and v["code"] == "ok"]
    assert len(answers) == 2
    assert len({v["request"] for v in answers}) == 1
    assert len({v["nonce"] for v in answers}) == 2
    assert [v["round"] for v in reserved(entries)].count(2) == 1
