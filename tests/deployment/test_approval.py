"""People at the sites approve a run before it begins, in a federation of real processes."""

import subprocess
import sys

import pytest
from deployment_lab import Lab
from tests_recipe import TINY

from fieldmark.client.notify_settings import Notify
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.site import Site, write_settings

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

ROUNDS = 30
SITES = ["site-1", "site-2", "site-3"]
RECIPE = TINY.replace("rounds = 2", f"rounds = {ROUNDS}\nquorum = 0.5\ndeadline_s = 60")


TELL = """#!/bin/sh
printf '%s|' "$@" >> {calls}
echo >> {calls}
"""


def approve(lab, name, said=""):
    command = [sys.executable, "-P", "-m", "fieldmark", "site", "approve", str(lab.homes[name])]
    return subprocess.run(command, input=said, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    facts = {}
    lab = Lab(tmp_path_factory.mktemp("asked"), RECIPE, SITES)
    settings = lab.run_dir / "coordinator" / "server.toml"
    text = settings.read_text()
    assert "wait_for_approval_s = 0.0" in text
    settings.write_text(text.replace("wait_for_approval_s = 0.0", "wait_for_approval_s = 600.0"))
    calls = tmp_path_factory.mktemp("told")
    for name, home in lab.homes.items():
        own = Site.open(home).settings
        program = calls / f"{name}.sh"
        program.write_text(TELL.format(calls=calls / name))
        program.chmod(0o700)
        told = Notify(command=(str(program), "--ward", "3"))
        asked = own.model_copy(update={"policy": Policy(approval="each-run"), "notify": told})
        write_settings(home, asked)
    with lab:
        lab.until(lambda: len(lab.events("awaiting_approval")) == 3, "all were asked")
        facts["before"] = lab.events("round_started")
        facts["said"] = [approve(lab, "site-1", "y\n"), approve(lab, "site-2", "y\n")]
        facts["no"] = approve(lab, "site-3", "n\n")
        lab.until(lambda: lab.events("round_finished"), "a quorum has begun")
        facts["late"] = approve(lab, "site-3", "y\n")
        facts["conduct"] = lab.until_over()
        facts["cohorts"] = [e["cohort"] for e in lab.events("round_started")]
        facts["waiting"] = lab.events("waiting_for_sites")
        facts["runner"] = lab.lines("site-3.runner")
        facts["told"] = {name: (calls / name).read_text().splitlines() for name in SITES}
    return facts


def test_nothing_begins_before_a_quorum_has_said_yes(story):
    assert story["before"] == []
    assert [done.returncode for done in story["said"]] == [0, 0]
    assert story["no"].returncode == 4
    assert "without differential privacy" in story["no"].stderr
    assert story["cohorts"][0] == ["site-1", "site-2"]


def test_a_late_yes_counts_from_a_later_round_on(story):
    assert story["late"].returncode == 0
    assert story["conduct"].state == "finished", story["conduct"]
    assert story["cohorts"][-1] == SITES
    assert len(story["cohorts"]) == ROUNDS


def test_who_was_waited_for_is_named_and_the_site_is_told_what_to_do(story):
    assert sorted(story["waiting"][0]["waiting_for"]) == SITES
    assert "waits for a person's approval: fieldmark site approve" in story["runner"]


def test_each_sites_own_command_was_told_once_that_a_run_waits(story):
    for name, lines in story["told"].items():
        (line,) = lines
        words = line.split("|")
        assert words[:4] == ["--ward", "3", "approval", name]
        assert words[4].startswith("run ")
        assert "waits for a person's approval: fieldmark site approve" in words[4]
        assert words[5:] == [""]
