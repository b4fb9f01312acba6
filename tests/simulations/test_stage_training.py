"""A federation that trains the last stages, on maps that each site computes once."""

import json

import numpy as np
import pytest
from tests_recipe import TINY

from fgvc_core.data.cache import cache_folder
from fgvc_core.experiment import make_learner
from fgvc_core.recipe import parse_recipe
from fieldmark.server.run_log.checkpoint import read_checkpoint
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.simulate import simulate

SETS = (
    "model.train=stage4",
    "model.attention=none",
    "loss.balance=logits",
    "loss.balance_prior=0.5",
    "train.start=lda",
    "partition.scheme=dirichlet",
    "partition.alpha=1.0",
    "augment.rotation=0",
    "augment.zoom=0",
    "augment.color=0",
)


@pytest.fixture
def runs(tmp_path):
    def run(name, *sets):
        out = tmp_path / name
        metrics = simulate(Simulation(parse_recipe(TINY, [*SETS, *sets]), out))
        return out, metrics, read_checkpoint(out / "checkpoints" / "last.safetensors")[0]

    return run


def test_a_run_on_maps_ends_where_a_run_of_the_whole_network_ends(runs):
    # Without Adam and a discriminant of few pictures, which both enlarge small differences.
    plain = ("train.start=none", "loss.balance_prior=0", "train.optimizer=sgd", "train.lr=0.1")
    _, on_maps, tensors = runs("maps", *plain)
    _, whole, expected = runs("whole", *plain, "augment.cached_views=0")
    before = make_learner(parse_recipe(TINY, [*SETS, *plain]), 12).tensors()
    far = sum(float(np.square(expected[n] - before[n]).sum()) for n in expected) ** 0.5
    off = sum(float(np.square(tensors[n] - expected[n]).sum()) for n in expected) ** 0.5
    assert far > 0.1
    # Maps are float16.
    assert off < 0.01 * far
    assert abs(on_maps["top1"] - whole["top1"]) < 0.05


@pytest.mark.parametrize("use", [(), ("loss.balance_shares=all", "loss.balance_prior=0")])
def test_shares_of_the_classes_are_those_that_the_start_has_counted(runs, use):
    out, metrics, _ = runs("shares", "federation.rounds=1", "data.val_fraction=0.0", *use)
    state = json.loads((out / "checkpoints" / "last.json").read_text())
    counts_K = np.array(list(json.loads((out / "partition.json").read_text())["sites"].values()))
    counted_K = counts_K.sum(axis=0) + 1
    np.testing.assert_allclose(state["class_shares"], counted_K / counted_K.sum(), rtol=0.01)
    assert "class_shares" not in json.dumps(metrics)


def test_another_run_on_the_same_pictures_computes_no_map_again(runs):
    runs("first", "federation.rounds=1")
    kept = sorted(cache_folder().glob("features/*/*.safetensors"))
    assert kept
    runs("second", "federation.rounds=1", "train.lr=0.5")
    assert sorted(cache_folder().glob("features/*/*.safetensors")) == kept
