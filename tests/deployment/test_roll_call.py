"""A roll call that registered sites hold up, in a federation of real processes."""

import pytest
import silent_site
from deployment_lab import Lab

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

ROLL_CALL_S, LATE_S, ROUNDS = 12.0, 14.0, 10
HONEST = "site-1"
OTHERS = {"site-2": "silent", "site-3": "stalls", "site-4": "drips", "site-5": "late"}
RECIPE = f"""
name = "tiny"
seed = 3
[data]
name = "fieldmarks"
image_size = 32
fieldmarks_train = 150
fieldmarks_test = 48
[partition]
scheme = "iid"
sites = 5
[model]
backbone = "fieldmark_nano"
[train]
batch_size = 16
[federation]
rounds = {ROUNDS}
quorum = 0.2
deadline_s = 60
[evaluate]
pixel_baseline = false
"""


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    facts = {}
    scripts = {name: (silent_site.__file__, how, str(LATE_S)) for name, how in OTHERS.items()}
    held_up = Lab(tmp_path_factory.mktemp("roll"), RECIPE, [HONEST, *OTHERS], scripts)
    settings = held_up.run_dir / "coordinator" / "server.toml"
    text = settings.read_text()
    assert "roll_call_s = 300.0" in text
    settings.write_text(text.replace("roll_call_s = 300.0", f"roll_call_s = {ROLL_CALL_S}"))
    with held_up as lab:
        facts["conduct"] = lab.until_over()
        for kind in ("roll_call", "roll_call_closed", "round_started"):
            facts[kind] = lab.events(kind)
        facts["states"] = {name: site.state for name, site in lab.view().sites.items()}
        facts["logs"] = {name: lab.lines(name) for name in OTHERS}
    return facts


def test_it_closes_in_time_and_the_run_goes_on(story):
    assert story["conduct"].state == "finished", story["conduct"]
    (closed,) = story["roll_call_closed"]
    assert ROLL_CALL_S <= closed["seconds"] < ROLL_CALL_S + 5
    assert len(story["round_started"]) == ROUNDS


def test_the_stalling_and_the_dripping_had_announced_their_answers(story):
    assert "stalls" in story["logs"]["site-3"]
    assert "drips" in story["logs"]["site-4"]
    assert "refused" not in story["logs"]["site-4"]


def test_who_was_waited_for_is_named(story):
    (closed,) = story["roll_call_closed"]
    assert sorted(closed["waited_for"]) == sorted(OTHERS)
    named = {e["registered"] for e in story["roll_call"] if not e["accepted"]}
    assert named == set(OTHERS)
    assert story["states"]["site-2"] == "no answer"


def test_the_late_one_takes_part_from_a_later_round_on_and_the_others_never(story):
    cohorts = [set(e["cohort"]) for e in story["round_started"]]
    assert cohorts[0] == {HONEST}
    assert cohorts[-1] == {HONEST, "site-5"}
    assert not set.union(*cohorts) & {"site-2", "site-3", "site-4"}
