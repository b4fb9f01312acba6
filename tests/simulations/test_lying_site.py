"""A registered site that lies in every way, in a real federation: what it gets, what is kept."""

import json
from pathlib import Path

import lying_site
import pytest
from deployment_lab import Lab, models_inprocess
from lying_site import LIES, VICTIM

from fieldmark.server.deployment.gateway import NOT_TAKEN
from fieldmark.server.deployment.settings import read_settings, write_settings

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

LIAR = "site-2"
RECIPE = """
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
[wire]
max_update_mb = 8
[federation]
rounds = 8
quorum = 0.5
deadline_s = 120
set_aside_after = 0
[evaluate]
pixel_baseline = false
"""
BOUNDS = {"message_mb": 20.0, "slow_s": 3.0, "request_s": 5.0}
HONEST = [number for number, lies in LIES.items() if lies[0] == "honest"]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lying")
    facts = {"without the liar": models_inprocess(RECIPE, folder / "reference", [VICTIM])}
    lying = Lab(folder, RECIPE, [VICTIM, LIAR], {LIAR: (lying_site.__file__,)})
    settings = read_settings(lying.folder)
    gateway = settings.gateway.model_copy(update=BOUNDS)
    write_settings(lying.folder, settings.model_copy(update={"gateway": gateway}))
    with lying as lab:
        facts["conduct"] = lab.until_over()
        facts["models"] = lab.models()
        facts["replies"] = [r for r in lab.events("reply") if r["kind"] == "train"]
        facts["liar's log"] = lab.lines(LIAR)
        status = Path(f"/proc/{lab.pid('gateway')}/status").read_text()
        peak = next(x for x in status.splitlines() if x.startswith("VmHWM"))
        facts["gateway MB"] = int(peak.split()[1]) / 1000
        told = (lab.homes[LIAR] / "lies.jsonl").read_text().splitlines()
        facts["got"] = {(t["round"], t["lie"]): t for t in map(json.loads, told)}
        facts["refused"] = [
            json.loads(x) for x in (lab.folder / "logs/gateway.jsonl").read_text().splitlines()
        ]
    return facts


def reply(story, round_, site=LIAR):
    (found,) = [r for r in story["replies"] if (r["round"], r["site"]) == (round_, site)]
    return found


def refusals(story, status):
    return [r["refused"] for r in story["refused"] if (r["status"], r["site"]) == (status, LIAR)]


def test_the_run_ends_with_all_its_rounds_whatever_the_liar_did(story):
    assert story["conduct"].state == "finished", (story["conduct"], story["liar's log"])
    assert sorted(story["models"]) == sorted(LIES)
    assert story["conduct"].tries == 1
    assert {key[1] for key in story["got"]} == {lie for lies in LIES.values() for lie in lies}


def test_the_genuine_site_counts_in_every_round_also_where_it_was_forged(story):
    for number in LIES:
        genuine = reply(story, number, VICTIM)
        assert genuine["accepted"], genuine
    assert len([r for r in story["replies"] if r["site"] == VICTIM]) == len(LIES)


def test_what_the_liar_sent_has_not_moved_the_model_by_a_bit(story):
    before_honest = [story["models"][n] for n in range(1, HONEST[0])]
    assert before_honest == story["without the liar"][: HONEST[0] - 1]
    assert story["models"][HONEST[0]] != story["without the liar"][HONEST[0] - 1]


@pytest.mark.parametrize(
    ("round_", "said"),
    [
        (1, "The signature does not match the registered key."),
        (2, "The reply answers another request: its site differs."),
        (3, "The reply answers another request: its round differs."),
        (4, "The tensors are not the ones that were signed."),
        (6, "The reply answers another request: its round differs."),
        (7, "more than wire.max_update_mb = 8"),
    ],
)
def test_each_false_reply_is_refused_with_its_reason_and_recorded(story, round_, said):
    found = reply(story, round_)
    assert not found["accepted"]
    assert said in found["reason"]


def test_its_honest_replies_still_count(story):
    assert [n for n in LIES if reply(story, n)["accepted"]] == HONEST


def test_who_answers_twice_is_heard_once(story):
    number = HONEST[0]
    assert story["got"][number, "honest"]["taken"] > 0
    for again in ("the same again", "another answer"):
        assert story["got"][number, again]["taken"] == 0, again
    accepted = reply(story, number)
    assert accepted["accepted"]
    assert refusals(story, 200) == [NOT_TAKEN] * 2
    assert accepted.get("examples") != 10_000


def test_who_pushes_as_another_node_is_turned_away_at_the_gateway(story):
    got = story["got"][4, "pushes as another node"]
    assert (got["status"], got["text"]) == (403, '{"detail":"Not allowed"}')
    assert "a message that claims another node's identity" in refusals(story, 403)


def test_an_answer_to_another_sites_message_is_turned_away_at_the_gateway(story):
    assert story["got"][4, "answers another's message"]["status"] == 403
    assert "an answer to a message that was not handed to it" in refusals(story, 403)


def test_two_gigabytes_are_refused_at_the_bound_and_never_held(story):
    got = story["got"][4, "2 GB in one tree"]
    assert (got["status"], got["text"]) == (413, '{"detail":"Too large"}')
    statuses = story["got"][4, "2 GB in pieces"]["statuses"]
    assert statuses
    # Nothing was stored (1), and nothing was even forwarded (200): nobody has asked for it.
    assert set(statuses) <= {403, 0}
    assert any("pieces" in text for text in refusals(story, 413))
    assert "a piece of no message that it has announced" in refusals(story, 403)
    assert story["gateway MB"] < 200


def test_a_dripping_request_is_cut_off_and_recorded(story):
    got = story["got"][4, "drips"]
    assert got["status"] in (0, 408)
    assert got["seconds"] < 30
    assert "a request that took too long" in refusals(story, 408)
