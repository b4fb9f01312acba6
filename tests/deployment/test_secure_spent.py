"""Five sites that train under masked sums as real processes; one is killed between two trips.

SuperLink, gateway, TLS, four sites with nodes and runners of their own, and one that keeps back
that it is ready (``withholding_site.py``). Round 1 is as it should be. In round 2 every process of
``site-1`` is ended with SIGKILL after it has said that it is ready: the round is spent. Round 3 is
over the other four; meanwhile it is started again, and by round 5 it is among them again.
"""

import json

import pytest
import withholding_site
from deployment_lab import Lab, models_inprocess
from secure_disks import clear, counted, seeds, where
from tests_recipe import TINY

from fgvc_core.recipe import parse_recipe
from fieldmark.client.site import Site

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

NAMES = [f"site-{number}" for number in range(1, 6)]
KILLED, LAST = NAMES[0], NAMES[-1]
NODE, ANSWERS = "SuperNode ID", "Sending: query.roll_call"
RECIPE = parse_recipe(
    TINY,
    ("partition.sites=5", "model.train=head", "secure.least=4", "secure.most=5",
     "secure.colluding=1", "federation.rounds=5", "federation.deadline_s=240"),
)  # fmt: skip


def heard(lab, round_):
    """Sites that the coordinator has heard to be ready in a round of training."""
    replies = [r for r in lab.events("reply") if r["kind"] == "train" and r["accepted"]]
    return {r["site"] for r in replies if r["round"] == round_}


def worked(lab, round_, names=NAMES):
    """Step until these have worked, and all but the last have been heard to be ready."""
    lab.until(lambda: {*clear(lab.homes, "", round_)} == {*names}, f"all have worked in {round_}")
    lab.until(lambda: heard(lab, round_) >= {*names} - {LAST}, "all but the last are ready")
    return clear(lab.homes, "", round_)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    facts = {
        "alone": models_inprocess(RECIPE.to_toml(), tmp_path_factory.mktemp("here") / "run", NAMES)
    }
    script = {LAST: (withholding_site.__file__,)}
    lab = Lab(tmp_path_factory.mktemp("spent"), RECIPE.to_toml(), NAMES, script)
    server = lab.run_dir / "coordinator" / "server.toml"
    text = server.read_text()
    assert "wait_for_sites_s = 120.0" in text
    server.write_text(text.replace("wait_for_sites_s = 120.0", "wait_for_sites_s = 45.0"))
    with lab:
        kept = [worked(lab, 1)]
        (lab.folder / "go-1").touch()
        lab.until_round(1)
        kept.append(worked(lab, 2))
        lab.kill_site(KILLED)
        (lab.folder / "go-2").touch()
        lab.until(lambda: lab.events("round_spent"), "round 2 is spent")
        facts["found then"] = {n: where(one.words, lab) for n, one in kept[1].items()}
        facts["path"] = kept[1][KILLED].path.resolve()
        kept.append(worked(lab, 3, NAMES[1:]))
        answered = lab.lines(f"{KILLED}.supernode").count(ANSWERS)
        connected = lab.lines(f"{KILLED}.supernode").count(NODE)
        lab.federation.start_site(Site.open(lab.homes[KILLED]))
        lab.until(
            lambda: lab.lines(f"{KILLED}.supernode").count(NODE) > connected,
            "it is connected again",
        )
        (lab.folder / "go-3").touch()
        # It is called when round 4 begins, and is asked again from the round after its answer on.
        lab.until(
            lambda: lab.lines(f"{KILLED}.supernode").count(ANSWERS) > answered,
            "it has answered the roll call again",
        )
        (lab.folder / "go-4").touch()
        kept.append(worked(lab, 5))
        (lab.folder / "go-5").touch()
        facts["over"] = lab.until_over()
        facts["spent"] = lab.events("round_spent")
        facts["lost"] = lab.events("secure_sum_lost")
        facts["opened"] = [e for e in lab.events("secure_sum") if e["phase"] == "train"]
        facts["ledgers"] = {n: counted(home) for n, home in lab.homes.items()}
        facts["metrics"] = json.loads((lab.run_dir / "metrics.json").read_text())
        hidden = {
            f"{n}, {at}": one.words for at, them in enumerate(kept) for n, one in them.items()
        }
        for at, them in enumerate(kept):
            hidden[f"seeds, {at}"] = seeds(them, lab.homes)
        facts["left"] = {what: where(words, lab) for what, words in hidden.items() if words}
    return facts


def test_the_round_is_spent_the_site_named_and_the_next_one_opens(story):
    assert story["over"].state == "finished", story["over"]
    (spent,) = story["spent"]
    assert (spent["round"], spent["silent"]) == (2, [KILLED])
    assert [(e["round"], e["site"]) for e in story["lost"]] == [(2, KILLED)]
    opened = {e["round"]: e["names"] for e in story["opened"]}
    assert (opened[1], opened[3], opened[5]) == (NAMES, NAMES[1:], NAMES)
    assert {*opened} == {1, 3, 4, 5}
    history = story["metrics"]["history"]
    assert [entry["accepted"] > 0 for entry in history] == [True, False, True, True, True]
    assert history[1]["model"] == history[0]["model"] != history[2]["model"]


def test_meanwhile_only_the_killed_site_held_what_it_had_not_sent(story):
    found = story["found then"]
    assert found[KILLED] == {story["path"]}
    assert [n for n in NAMES[1:] if found[n]] == []


def test_the_model_of_the_first_sum_is_the_in_process_engines_to_the_bit(story):
    assert story["metrics"]["history"][0]["model"] == story["alone"][0]


def test_no_site_has_answered_a_second_set_and_nothing_was_charged(story):
    """Each was ready once at a place, and answered one set; the killed one none in round 2."""
    sums = [e["names"] for e in story["opened"]] + [NAMES]
    for name in NAMES:
        counted_ = story["ledgers"][name]
        own = sum(name in names for names in sums)
        assert counted_.count("ready") == own + 1
        assert counted_.count("view") == own + (name != KILLED)
        assert "reserved" not in counted_


def test_afterwards_no_clear_value_key_or_seed_is_in_any_file(story):
    assert {what: files for what, files in story["left"].items() if files} == {}
