"""Tensors that stay at a site: they never leave it, and follow the rounds that counted."""

import json

import numpy as np
import pytest
from inline_executor import Here
from safetensors.numpy import load_file
from tests_recipe import TINY

from fgvc_core.errors import PolicyRefusal
from fgvc_core.experiment import make_learner
from fgvc_core.models.trainable import norm_names
from fgvc_core.recipe import load_recipe, parse_recipe
from fieldmark.server.run_log.checkpoint import read_checkpoint
from fieldmark.simulations.engines import run_inprocess
from fieldmark.simulations.folders import lay_out, site_homes
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, prepare
from fieldmark.simulations.simulate import run_with

SETS = ("federation.rounds=2", "data.fieldmarks_train=60", "data.fieldmarks_test=12")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    recipe = parse_recipe(TINY, [*SETS, 'federation.local=["head.*"]'])
    setting = deal(recipe, folder / "cache")
    prepare(recipe, setting, Here(), lambda done, total: None)
    plan = Simulation(recipe, folder / "run")
    lay_out(plan, setting)
    run_inprocess(plan.out, site_homes(plan, setting), Here(), 1, quiet=True)
    return plan, setting.table.num_classes


def test_what_stays_never_leaves_and_differs_from_site_to_site(done):
    plan, classes = done
    kept = []
    for home in sorted(plan.out.glob("sites/*")):
        for line in (home / "ledger.jsonl").read_text().splitlines():
            assert "head." not in json.dumps(json.loads(line).get("tensors", {}))
        files = sorted(home.glob("runs/*.kept/*.safetensors"))
        assert [path.stem for path in files] == ["00000001", "00000002"]
        kept.append(load_file(files[-1]))
    assert all(set(k) == {n for n in kept[0] if n.startswith("head.")} for k in kept)
    assert any((kept[0][name] != kept[1][name]).any() for name in kept[0])
    fresh = make_learner(plan.recipe, classes).tensors()
    tensors, _ = read_checkpoint(plan.out / "checkpoints" / "last.safetensors")
    assert set(tensors) == set(fresh)
    for name in tensors:
        same = np.array_equal(tensors[name], fresh[name])
        # The coordinator never sees the sites' heads; all else has been learnt together.
        assert same or not name.startswith("head.")


def test_a_model_that_is_nobodys_is_not_scored_by_the_coordinator(done):
    plan, _ = done
    metrics = json.loads((plan.out / "metrics.json").read_text())
    assert metrics["local"] == ["head.*"]
    assert "top1" not in metrics
    assert all(h["top1"] is None and h["val_top1"] is not None for h in metrics["history"])
    assert all(site["top1"] is not None for site in metrics["sites"].values())
    # A site's own model is all that there is: nothing to have gained over.
    assert all(site["personal_top1"] == site["top1"] for site in metrics["sites"].values())
    assert all(site["personal_gain"] is None for site in metrics["sites"].values())


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["federation.strategy=scaffold"], "control variates"),
        (["federation.strategy=fednova"], "numbers of steps"),
        (['federation.local=["head.*"]'], "without noise"),
    ],
)
def test_under_privacy_nothing_is_kept_and_the_reason_is_given(sets, said):
    with pytest.raises(PolicyRefusal, match=said) as caught:
        parse_recipe(TINY, ["privacy.epsilon=1", *sets])
    assert caught.value.remedy


def test_local_norms_stay_at_the_site_and_all_else_is_shared(tmp_path):
    sets = (
        *("model.backbone=test_resnet", "model.attention=none", "model.norm=local"),
        # At 32 px its last map has one position: a last batch of one picture has no variance.
        "data.image_size=64",
    )
    recipe = parse_recipe(TINY, [*SETS, *sets, "federation.rounds=1"])
    metrics = run_with(Simulation(recipe, tmp_path / "run"), Here(), 1, lambda done, total: None)
    kept = [load_file(next(h.glob("runs/*.kept/*.safetensors"))) for h in site_folders(tmp_path)]
    names = set(kept[0])
    assert {name.rpartition(".")[2] for name in names} == {
        *("weight", "bias", "running_mean", "running_var")
    }
    assert metrics["local"] == sorted(names, key=metrics["local"].index)
    means = [name for name in names if name.endswith("running_mean")]
    assert any((kept[0][name] != kept[1][name]).any() for name in means)
    tensors, _ = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.safetensors")
    learner = make_learner(load_recipe(tmp_path / "run" / "recipe.toml"), 12)
    fresh = learner.tensors()
    assert names == set(norm_names(learner.model))
    assert set(tensors) == set(fresh) > names
    moved = {name for name in tensors if not np.array_equal(tensors[name], fresh[name])}
    # What stays, the coordinator has never seen.
    assert moved
    assert not moved & names


def site_folders(folder):
    return sorted((folder / "run" / "sites").iterdir())
