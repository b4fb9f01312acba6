"""What is computed on a GPU is what a CPU computes, up to rounding.

On a machine without a GPU only the CPU's half runs, against itself: it shows that the tests run.
"""

import numpy as np
import pytest
import torch
from tests_recipe import TINY

from fgvc_core.experiment import make_learner, make_table, pick_device
from fgvc_core.privacy.accountant import PrivacyEvent
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.compatibility import validate_private
from fgvc_core.training.features import FeatureStore, ensure_features, read_features
from fgvc_core.training.loop import Stretch, autocast_of
from fgvc_core.training.private import PrivateTraining
from fieldmark.client.recipe_limits import uses_gpu
from fieldmark.simulations.bench import gpu, gpu_timing

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ],
    ),
]
FULL = ("train.precision=full", "train.optimizer=sgd", "train.lr=0.01", "train.epochs=1")
UNITS = np.array([0, 0, 1, 2, 3, 4, 5, 5, 6, 7])

pytestmark = pytest.mark.parametrize("device", DEVICES)


def made(device, tmp_path, *overrides):
    recipe = parse_recipe(TINY, [*FULL, *overrides])
    table = make_table(recipe, tmp_path).where("train").take(np.arange(len(UNITS)))
    learner = make_learner(recipe, table.num_classes, device)
    return learner, learner.examples(table, tmp_path), table


def test_a_round_of_training_moves_the_tensors_alike(device, tmp_path):
    found = {}
    for each in ("cpu", device):
        learner, examples, _ = made(each, tmp_path)
        start = learner.tensors()
        learner.train_round(examples, Stretch(1, 1), "site")
        after = learner.tensors()
        found[each] = np.concatenate([(after[n] - start[n]).ravel() for n in sorted(start)])
    size = np.linalg.norm(found["cpu"])
    assert size > 0
    assert np.linalg.norm(found[device] - found["cpu"]) <= 1e-2 * size


def test_scores_are_alike(device, tmp_path):
    learner, examples, _ = made("cpu", tmp_path)
    expected, _ = learner.evaluate(examples, 4)
    learner, examples, _ = made(device, tmp_path)
    found, _ = learner.evaluate(examples, 4)
    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-3)


def test_features_are_alike(device, tmp_path):
    found = []
    for number, each in enumerate(("cpu", device)):
        learner, _, table = made(each, tmp_path, "model.train=head", "model.attention=none")
        store = FeatureStore(tmp_path / f"features-{number}", learner.extractor)
        ensure_features(learner.model, table, store)
        found.append(np.asarray(read_features(learner.model, table, store), dtype=np.float64))
    np.testing.assert_allclose(found[1], found[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("engine", ["loop", "opacus", "batched"])
def test_clipped_sums_are_the_loops_on_a_cpu(device, engine, tmp_path):
    def total(each, kind):
        learner, examples, _ = made(each, tmp_path)
        examples.augment = None
        training = PrivateTraining(learner, examples, UNITS, private(kind))
        learner.model.train()
        with training.engine.session():
            return training.engine.clipped_sum(training.draw(1.0), 0.1)

    expected, found = total("cpu", "loop"), total(device, engine)
    size = float(expected.total_D.norm())
    assert size > 0.1
    assert float((found.total_D.cpu() - expected.total_D).norm()) <= 2e-3 * size
    assert found.unclipped == expected.unclipped


def test_a_private_round_runs_and_its_views_are_not_repeatable(device, tmp_path):
    moved = []
    for _ in range(2):
        learner, examples, _ = made(device, tmp_path)
        training = PrivateTraining(learner, examples, UNITS, private("auto"))
        assert training.kind == ("opacus" if device == "cuda" else "loop")
        training.run(PrivacyEvent("step", 1.0, 1.0, 2), len(UNITS), Stretch(1, 1))
        moved.append(learner.tensors()["head.weight"])
    assert np.isfinite(moved[0]).all()
    assert not np.array_equal(*moved)


def test_the_experiment_that_looks_for_coupling_leaves_the_model_as_it_was(device, tmp_path):
    learner, _, _ = made(device, tmp_path)
    before = learner.tensors()
    validate_private(learner, private("auto"))
    after = learner.tensors()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_half_precision_is_for_gpus_that_have_it(device, tmp_path):
    there = torch.device(device)
    with autocast_of("auto", there):
        product = torch.ones(4, 4, device=there) @ torch.ones(4, 4, device=there)
    half = device == "cuda" and torch.cuda.is_bf16_supported()
    assert product.dtype == (torch.bfloat16 if half else torch.float32)


def test_the_device_is_chosen_and_counted(device):
    assert pick_device(device).type == device
    assert uses_gpu(device) is (device == "cuda")
    if device == "cuda":
        assert pick_device("auto").type == "cuda"
        assert uses_gpu("auto")


@pytest.mark.slow
def test_the_bench_gives_every_figure_or_says_why_not(device, monkeypatch):
    monkeypatch.setattr(gpu_timing, "REPEATS", 1)
    monkeypatch.setattr(gpu, "STEPS", 1)
    monkeypatch.setattr(gpu, "pick_device", lambda name: torch.device(device))
    monkeypatch.setattr(gpu, "LARGE", gpu.SMALL)
    figures = gpu.bench_gpu()
    missing = {name: entry["how"] for name, entry in figures.items() if entry["value"] is None}
    if device == "cpu":
        assert set(missing) == {"demo_compiled", "clients_streams", "clients_processes"}
    for why in missing.values():
        assert why.startswith("not measured: ")
    for name in ("demo_step", "demo_dp_batched", "demo_dp_opacus_ghost", "demo_bf16"):
        assert figures[name]["ratio"] > 0


def private(engine):
    return PrivacySettings(
        epsilon=8.0, method="gradients", sampling_rate=1.0, steps=2, engine=engine
    )
