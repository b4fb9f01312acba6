"""The restore drill: a disk is lost after a run, and nothing is spent twice.

Everything is what a real federation has: ``server up`` and ``site up`` as processes of their own,
TLS and keys, on this machine's loopback. The new machine is one without this user's register
(another FIELDMARK_STATE).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fgvc_core.protocol.kit import read_kit
from fgvc_core.recipe import parse_recipe
from fieldmark.client.deployment.check import check_site
from fieldmark.client.deployment.joining import Answers, join, make_key
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.site import Site
from fieldmark.server.deployment.launching import launch
from fieldmark.server.deployment.processes import free_loopback_port
from fieldmark.server.deployment.provisioning import add_site, init_server
from fieldmark.server.deployment.run_request import ACTIVE, read_run_request
from fieldmark.server.deployment.settings import DeploymentSettings, GatewaySettings

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

RECIPE = parse_recipe("""
name = "drill"
seed = 3
[data]
name = "fieldmarks"
image_size = 32
fieldmarks_train = 60
fieldmarks_test = 24
[model]
backbone = "fieldmark_nano"
[train]
batch_size = 16
[federation]
rounds = 1
deadline_s = 120
[evaluate]
pixel_baseline = false
[privacy]
epsilon = 6.0
delta = 1e-5
method = "gradients"
steps = 2
sampling_rate = 0.2
""")
PATIENCE_S = 240.0


TYPED = set()
"""Every command that the drill has typed, without what differs from machine to machine."""


def fieldmark(*command, state):
    """One command, as a person at that machine types it."""
    TYPED.add(" ".join(word for word in map(str, command) if re.fullmatch("[a-z-]+", word)))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fieldmark", *map(str, command)],
        env={**os.environ, "FIELDMARK_STATE": str(state)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def checked(home, state):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIELDMARK_STATE", str(state))
        return check_site(home)


def run(folder, name):
    """One run, to its end; how it ended."""
    run_dir = launch(folder, RECIPE, name)
    deadline = time.monotonic() + PATIENCE_S
    while read_run_request(run_dir).state in ACTIVE:
        assert time.monotonic() < deadline, f"waited in vain for run {name}"
        time.sleep(0.1)
    return read_run_request(run_dir)


def ledger_at(home):
    site = Site.open(home)
    return Ledger(site.home, site.data_binding, site.name)


def charged(home):
    """(run, purpose) -> releases charged."""
    plans = ledger_at(home).plans()
    return {(p.run, e.purpose): e.count for p in plans for e in p.charged[1]}


@pytest.fixture(scope="module")
def drill(tmp_path_factory):
    """A back-up, a run, the loss, a refused run, the recovery, one more run."""
    folder = tmp_path_factory.mktemp("drill")
    coordinator, home, copy = folder / "fed", folder / "lyon", folder / "backup"
    old, new, facts = folder / "state", folder / "new-state", {}
    gateway = GatewaySettings(listen="127.0.0.1", port=free_loopback_port())
    init_server(coordinator, DeploymentSettings(hosts=("127.0.0.1",), gateway=gateway))
    _, kit = add_site(coordinator, "lyon", make_key(folder / "lyon.key"))
    policy = Policy(privacy="required", epsilon_cap=30.0)
    answers = Answers(data=None, units=60, policy=policy, device="cpu")
    join(read_kit(kit), home, answers, folder / "lyon.key")
    try:
        fieldmark("server", "up", coordinator, "--detach", state=old)
        fieldmark("site", "up", home, "--detach", state=old)
        shutil.copytree(home, copy, ignore=shutil.ignore_patterns("state", "logs", "cache"))
        facts["first"] = run(coordinator, "first")
        fieldmark("site", "stop", home, state=old)
        facts["spent"], facts["charged"] = ledger_at(home).total(1e-5)[0], charged(home)
        shutil.rmtree(home)
        # The new machine: the copy is put back, and nobody there remembers anything.
        copy.rename(folder / "lyon-2")
        home = folder / "lyon-2"
        facts["forgotten"] = ledger_at(home).total(1e-5)[0]
        facts["check"] = checked(home, new)
        fieldmark("site", "up", home, "--detach", state=new)
        facts["refused"] = run(coordinator, "refused")
        events = (coordinator / "runs" / "refused" / "events.jsonl").read_text().splitlines()
        facts["roll call"] = [e for e in map(json.loads, events) if e["event"] == "roll_call"]
        facts["still"] = ledger_at(home).total(1e-5)[0]
        fieldmark("site", "stop", home, state=new)
        statement = folder / "lyon.statement"
        fieldmark("server", "ledger-statement", coordinator, "lyon", "--out", statement, state=old)
        told = fieldmark("site", "ledger", "recover", home, statement, "--json", state=new)
        facts["recovery"] = json.loads(told)
        facts["recovered"], facts["charged now"] = ledger_at(home).total(1e-5)[0], charged(home)
        fieldmark("site", "up", home, "--detach", state=new)
        facts["check after"] = checked(home, new)
        fieldmark("site", "check", home, state=new)
        facts["second"] = run(coordinator, "second")
        facts["at the end"] = ledger_at(home).total(1e-5)[0]
    finally:
        for command in (("site", "stop", home), ("server", "stop", coordinator)):
            subprocess.run(
                [sys.executable, "-P", "-m", "fieldmark", *map(str, command)],
                capture_output=True,
                timeout=PATIENCE_S,
            )
    return facts


def test_the_run_before_the_loss_ends_well_and_costs_what_the_copy_has_forgotten(drill):
    assert drill["first"].state == "finished"
    assert drill["spent"] > drill["forgotten"] == 0


def test_site_check_says_that_the_copy_is_old_before_any_run(drill):
    (found,) = [f for f in drill["check"].findings if f.name == "ledger"]
    assert (found.level, drill["check"].exit_code) == ("failed", 4)
    assert "it is an old copy" in found.said
    assert "site ledger recover" in found.remedy


def test_the_copy_is_refused_at_the_next_roll_call_and_spends_nothing(drill):
    assert drill["refused"].state == "failed"
    (answer,) = drill["roll call"]
    assert not answer["accepted"]
    assert "The coordinator has seen an entry of this site's ledger" in answer["reason"]
    assert drill["still"] == drill["forgotten"]


def test_it_is_recovered_by_the_coordinators_statement_and_says_at_least_what_was_spent(drill):
    assert drill["recovered"] >= drill["spent"] * (1 - 1e-9)
    for key, count in drill["charged"].items():
        assert drill["charged now"][key] >= count
    assert drill["recovery"]["missing"] > 0
    # The run went to its end: nothing beyond it is charged.
    assert drill["recovered"] == pytest.approx(drill["spent"])


def test_it_takes_part_again_and_goes_on_from_there(drill):
    assert drill["check after"].exit_code == 0
    assert drill["second"].state == "finished", drill["second"]
    assert drill["at the end"] > drill["recovered"]


def test_the_pages_drill_is_the_one_that_was_typed(drill):
    pages = Path(__file__).parents[2] / "docs"
    lines = [
        line
        for page in ("operations.md", "site-engineer.md")
        for line in re.findall(r"^fieldmark (.*)  # drill$", (pages / page).read_text(), re.M)
    ]
    assert len(lines) == 7
    for line in lines:
        words = [word for word in line.split() if re.fullmatch("[a-z-]+", word)]
        named = [word for word in words if word not in ("federation", "lyon")]
        assert any(set(named) <= set(typed.split()) for typed in TYPED), line
