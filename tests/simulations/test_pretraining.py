"""Rounds without labels before round 1, end to end."""

import json

import numpy as np
import pytest
from extras import needs
from inline_executor import Here
from tests_recipe import TINY

from fgvc_core.errors import PolicyRefusal, RunFailed
from fgvc_core.experiment import make_learner
from fgvc_core.recipe import parse_recipe
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.site import Site, write_settings
from fieldmark.server.run_log.checkpoint import read_checkpoint
from fieldmark.server.run_log.events import EventLog
from fieldmark.simulations.engines import run_inprocess
from fieldmark.simulations.folders import lay_out, site_homes
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, prepare

needs("lightly", "the extra 'pretraining' is not installed")

SETS = (
    *("data.fieldmarks_train=60", "data.fieldmarks_test=12", "data.fieldmarks_pool=36"),
    *("pretrain.method=simclr", "pretrain.rounds=2", "pretrain.batch_size=16"),
    *("federation.rounds=1", "train.epochs=1", "pretrain.hidden=32", "pretrain.projection=16"),
)


def begin(folder, *sets):
    recipe = parse_recipe(TINY, [*SETS, *sets])
    setting = deal(recipe, folder / "cache")
    prepare(recipe, setting, Here(), lambda done, total: None)
    plan = Simulation(recipe, folder / "run")
    lay_out(plan, setting)
    return plan, setting


def run(plan, setting):
    run_inprocess(plan.out, site_homes(plan, setting), Here(), 1, quiet=True)
    return json.loads((plan.out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    plan, setting = begin(tmp_path_factory.mktemp("pretrained"))
    return plan, setting, run(plan, setting)


def tensors_of(plan, name="last"):
    return read_checkpoint(plan.out / "checkpoints" / f"{name}.safetensors")[0]


def replies(plan):
    events = (plan.out / "events.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, events) if e["event"] == "reply"]


def test_its_rounds_come_first_and_are_told_apart(done):
    plan, _, metrics = done
    assert [entry["round"] for entry in metrics["pretraining"]] == [1, 2]
    assert metrics["rounds"] == 1
    phases = [(e["kind"], e.get("phase", "")) for e in replies(plan)]
    assert phases == [("train", "pretrain")] * 6 + [("train", "")] * 3 + [("score", "")] * 3
    assert all(e["accepted"] for e in replies(plan))
    assert all(figures["rounds"] == 1 for figures in metrics["sites"].values())


def test_sites_learn_from_their_pool_and_training_pictures_but_not_from_validation(done):
    plan, setting, _ = done
    counted = {e["site"]: e["examples"] for e in replies(plan) if e.get("phase") == "pretrain"}
    trained = {e["site"]: e["examples"] for e in replies(plan) if e["kind"] == "train"}
    for site, count in counted.items():
        assert count == len(setting.pool[site]) + trained[site]
    assert sum(len(own) for own in setting.pool.values()) == 36


def test_the_projector_ends_with_it(done):
    plan, _, _ = done
    assert set(tensors_of(plan)) == set(make_learner(plan.recipe, 12).tensors())


def test_an_interrupted_run_ends_as_the_uninterrupted_one(done, tmp_path, monkeypatch):
    plan, setting = begin(tmp_path)
    emit = EventLog.emit

    class Cut(Exception):
        pass

    def cut(self, event, **values):
        emit(self, event, **values)
        if event == "pretraining_started" and values["round"] == 2:
            raise Cut

    monkeypatch.setattr(EventLog, "emit", cut)
    with pytest.raises(Cut):
        run(plan, setting)
    monkeypatch.setattr(EventLog, "emit", emit)
    metrics = run(plan, setting)
    assert [entry["round"] for entry in metrics["pretraining"]] == [1, 2]
    one, two = tensors_of(done[0]), tensors_of(plan)
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_what_was_learnt_without_labels_is_what_round_1_starts_from(done):
    plan, _, _ = done
    entries = [e for e in replies(plan) if e["kind"] == "train" and "phase" not in e]
    fresh = make_learner(plan.recipe, 12).tensors()
    whole = tensors_of(plan)
    moved = sum(float(np.square(whole[n] - fresh[n]).sum()) for n in fresh if n[:5] != "head.")
    # An update of round 1 is shorter than the way from the initial backbone.
    assert max(e["figures"]["norm"] for e in entries) < np.sqrt(moved)


def test_a_site_that_protects_its_pictures_refuses_before_anything_is_spent(tmp_path):
    own = parse_recipe("", ["privacy.epsilon=4", "privacy.method=gradients"]).privacy
    plan, setting = begin(tmp_path, "model.attention=none")
    for home in site_homes(plan, setting):
        site = Site.open(home)
        policy = Policy(privacy="required", epsilon_cap="none", own=own)
        data = site.settings.data.model_copy(update={"units": 30})
        write_settings(home, site.settings.model_copy(update={"policy": policy, "data": data}))
    with pytest.raises((PolicyRefusal, RunFailed), match="pretrain"):
        run(plan, setting)
    for home in site_homes(plan, setting):
        kinds = [json.loads(x)["kind"] for x in (home / "ledger.jsonl").read_text().splitlines()]
        assert "reserved" not in kinds
