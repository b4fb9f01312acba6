"""One registered site that spoils Flower's objects and calls, in a federation of real processes.

An honest site, whose rounds are as they would be without the other; every fault named.
"""

import json

import hostile_site
import pytest
from deployment_lab import Lab, models_inprocess
from lying_site import VICTIM

from fgvc_core.flower.records import FAULTS, UNREADABLE

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

HOSTILE, DEADLINE_S, ROUNDS = "site-2", 20, 4
SCRIPT = {HOSTILE: (hostile_site.__file__,)}
RECIPE = f"""
name = "tiny"
seed = 3
[data]
name = "fieldmarks"
image_size = 32
fieldmarks_train = 120
fieldmarks_test = 48
[partition]
scheme = "iid"
sites = 2
[model]
backbone = "fieldmark_nano"
[train]
batch_size = 16
[federation]
rounds = {ROUNDS}
quorum = 0.5
deadline_s = {DEADLINE_S}
set_aside_after = 3
[evaluate]
pixel_baseline = false
"""


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    facts = {"without it": models_inprocess(RECIPE, folder / "reference", [VICTIM])}
    with Lab(folder, RECIPE, [VICTIM, HOSTILE], SCRIPT) as lab:
        facts["conduct"] = lab.until_over()
        facts["models"] = lab.models()
        facts["rounds"] = {e["round"]: e for e in lab.events("round_finished")}
        facts["replies"] = [r for r in lab.events("reply") if r["kind"] == "train"]
        facts["set aside"] = lab.events("site_set_aside")
        facts["log"] = lab.lines(HOSTILE)
        told = (lab.homes[HOSTILE] / "lies.jsonl").read_text().splitlines()
        facts["got"] = {(t["round"], t["lie"]): t for t in map(json.loads, told)}
        facts["refused"] = [
            json.loads(x) for x in (lab.folder / "logs/gateway.jsonl").read_text().splitlines()
        ]
    return facts


def reply(story, round_):
    (found,) = [r for r in story["replies"] if (r["round"], r["site"]) == (round_, HOSTILE)]
    return found


def refused(story, what):
    return [r for r in story["refused"] if r["refused"] == what and r["site"] == HOSTILE]


def test_the_run_ends_as_it_would_and_the_honest_site_has_lost_nothing(story):
    assert story["conduct"].state == "finished", story["conduct"]
    assert list(story["models"].values()) == story["without it"]
    honest = [r for r in story["replies"] if r["site"] == VICTIM]
    assert [r["accepted"] for r in honest] == [True] * ROUNDS


def test_a_root_object_that_is_no_message_is_refused_and_named(story):
    assert story["got"][1, "no message"]["wanted"] > 0
    assert reply(story, 1)["reason"] == FAULTS[UNREADABLE]


def test_a_reply_that_is_announced_and_never_sent_does_not_outlast_the_deadline(story):
    assert story["got"][2, "no piece"]["wanted"] > 0
    assert "0 of 3 pieces had come by the deadline" in reply(story, 2)["reason"]
    assert DEADLINE_S < story["rounds"][2]["seconds"] < DEADLINE_S + 5
    assert max(story["rounds"][n]["seconds"] for n in (1, 3, 4)) < DEADLINE_S


def test_one_piece_that_is_named_150_times_is_never_joined(story):
    assert reply(story, 3)["reason"] == FAULTS[UNREADABLE]


def test_who_has_done_so_three_times_is_set_aside(story):
    (event,) = story["set aside"]
    assert (event["site"], event["round"]) == (HOSTILE, 3)


def test_an_id_that_is_registered_with_a_false_child_keeps_no_message_from_anybody(story):
    # Round 2 registered the empty record so. Nothing of an honest message can be known beforehand.
    assert story["got"][2, "no piece"]["wanted"] == 1
    assert len(story["rounds"]) == ROUNDS


@pytest.mark.parametrize(
    ("lie", "what"),
    [
        ("the question's objects", "a message that names objects of another"),
        ("confirms another's", "a receipt for another's message"),
        ("pulls another's", "a pull of an object of another's message"),
        ("pushes what nobody wants", "a piece of no message that it has announced"),
    ],
)
def test_what_is_not_its_own_is_refused_and_recorded(story, lie, what):
    assert {story["got"][n, lie]["status"] for n in (1, 2, 3)} == {403}
    assert len(refused(story, what)) >= 3
