"""The federation's model, fine-tuned at each site after the last round."""

import json

import numpy as np
import pytest
from inline_executor import Here
from safetensors.numpy import load_file
from tests_recipe import TINY

from fgvc_core.inference.trained import load_trained
from fgvc_core.recipe import parse_recipe
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.site import Site, write_settings
from fieldmark.server.report.page import render
from fieldmark.server.run_log.checkpoint import read_checkpoint
from fieldmark.simulations.engines import run_inprocess
from fieldmark.simulations.folders import lay_out, site_homes
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, prepare

SETS = ("federation.rounds=1", "data.fieldmarks_train=60", "data.fieldmarks_test=12")
TUNED = ("personal.epochs=3", "personal.lr=0.01")


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


def with_policy(home, **policy):
    site = Site.open(home)
    data = site.settings.data.model_copy(update={"units": 30})
    changes = {"policy": Policy(**policy), "data": data}
    write_settings(home, site.settings.model_copy(update=changes))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    plan, setting = begin(tmp_path_factory.mktemp("personal"), *TUNED)
    with_policy(site_homes(plan, setting)[0], share_scores=False)
    return plan, setting, run(plan, setting)


def own_models(plan, setting):
    return [next((home / "personal").glob("*")) for home in site_homes(plan, setting)]


def test_each_site_says_what_it_gained_on_its_own_validation_pictures(done):
    _, _, metrics = done
    told = {n: s for n, s in metrics["sites"].items() if "personal_top1" in s}
    # Where a policy keeps scores, these stay as well.
    assert set(told) == {"site-2", "site-3"}
    for figures in told.values():
        gained = figures["personal_top1"] - figures["personal_gain"]
        assert gained == pytest.approx(figures["top1"])
    assert metrics["personal"]["sites"] == 2
    assert 0 <= metrics["personal"]["top1"] <= 1


def test_what_comes_of_it_stays_at_the_site_and_can_be_used_there(done):
    plan, setting, _ = done
    best, _ = read_checkpoint(plan.out / "checkpoints" / "best.safetensors")
    tensors = [load_file(path) for path in own_models(plan, setting)]
    for own in tensors:
        assert set(own) == set(best)
        assert any(not np.array_equal(own[name], best[name]) for name in best)
    assert any(not np.array_equal(tensors[0][name], tensors[1][name]) for name in best)
    trained = load_trained(own_models(plan, setting)[0])
    assert trained.class_names == setting.table.class_names
    for home in site_homes(plan, setting):
        sent = [json.loads(line) for line in (home / "ledger.jsonl").read_text().splitlines()]
        assert sent[-1]["what"] == "score"
        assert sent[-1]["tensors"] == {}


def test_the_report_shows_the_gain(done):
    plan, _, metrics = done
    page = render(plan.out).read_text()
    assert "Own model" in page
    assert f"{100 * metrics['personal']['gain']:+.1f}" in page


def test_a_finished_run_is_not_tuned_again(done):
    plan, setting, metrics = done
    before = [path.stat().st_mtime_ns for path in own_models(plan, setting)]
    again = run(plan, setting)
    assert [path.stat().st_mtime_ns for path in own_models(plan, setting)] == before
    assert again["personal"] == metrics["personal"]


def test_a_site_under_its_own_protection_refuses_a_run_that_tunes_before_it_pays(tmp_path):
    own = parse_recipe("", ["privacy.epsilon=8", "privacy.method=gradients"]).privacy
    plan, setting = begin(tmp_path, *TUNED, "model.attention=none")
    home = site_homes(plan, setting)[1]
    with_policy(home, privacy="required", epsilon_cap="none", own=own)
    metrics = run(plan, setting)
    assert metrics["personal"]["sites"] == 2
    assert "site-2" not in metrics["sites"]
    assert not (home / "personal").exists()
    # It says so at the roll call, before it has paid for anything.
    lines = (plan.out / "events.jsonl").read_text().splitlines()
    called = [e for e in map(json.loads, lines) if e["event"] == "roll_call"]
    (refused,) = (e for e in called if not e["accepted"])
    assert "personal.epochs" in refused["reason"]
    assert '"reserved"' not in (home / "ledger.jsonl").read_text()


def test_personal_models_go_with_local_heads(tmp_path):
    plan, setting = begin(tmp_path, *TUNED, 'federation.local=["head.*"]')
    metrics = run(plan, setting)
    assert metrics["personal"]["sites"] == 3
    assert all("head.weight" in load_file(path) for path in own_models(plan, setting))
