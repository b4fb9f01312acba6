import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fgvc_core.experiment import make_learner
from fgvc_core.recipe import differences, load_recipe
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.simulate import simulate

STUDIES = Path(__file__).parents[2] / "simulations" / "recipes" / "studies"
SETS = {"cub200": 200, "cars": 196, "aircraft": 100}
CUB50 = Path(os.environ.get("FIELDMARK_DATA", Path(__file__).parents[3] / "shared/data")) / "cub50"


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda p: p.stem)
def test_every_study_is_sound_and_named_after_its_file(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    # Whoever runs one gives it the pictures: a recipe never says where they lie.
    assert recipe.data.path is None
    assert f"studies/{path.name}" in path.read_text()


def test_there_is_a_study_of_each_set_at_both_sizes():
    assert {p.stem for p in STUDIES.glob("*.toml")} == {
        f"{s}-{n}" for s in SETS for n in (224, 448)
    }


@pytest.mark.parametrize("name", SETS)
def test_the_larger_pictures_change_the_pictures_and_the_batch_alone(name):
    small, large = (load_recipe(STUDIES / f"{name}-{size}.toml") for size in (224, 448))
    changed = {told.split(" was ")[0] for told in differences(small, large)}
    assert changed == {"name", "data.image_size", "train.batch_size"}


@pytest.mark.parametrize("name", SETS)
def test_a_studys_model_is_built_scores_and_travels_at_the_stated_size(name):
    # Small pictures and no download; the network is the study's own.
    recipe = load_recipe(STUDIES / f"{name}-224.toml", ["model.weights=none", "data.image_size=64"])
    learner = make_learner(recipe, SETS[name])
    learner.model.eval()
    views_NCHW = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    with torch.no_grad():
        logits_NK = learner.model(learner.model.normalise(views_NCHW))
    assert logits_NK.shape == (2, SETS[name])
    tensors = learner.tensors()
    assert sum(a.nbytes for a in tensors.values()) == pytest.approx(95e6, rel=0.02)
    # Running statistics travel with their layers, counters of batches never.
    assert any(n.endswith("running_var") for n in tensors)
    assert not any("num_batches" in n for n in tensors)
    assert all(np.isfinite(a).all() for a in tensors.values())


@pytest.mark.slow
@pytest.mark.skipif(not CUB50.is_dir(), reason="needs the pictures of CUB's first 50 classes")
def test_a_study_runs_on_real_birds_at_a_small_size(tmp_path):
    changes = [
        f"data.path={CUB50}", "data.image_size=48", "model.backbone=resnet10t",
        "model.weights=none", "partition.sites=2", "federation.rounds=1", "train.epochs=1",
    ]  # fmt: skip
    metrics = simulate(
        Simulation(load_recipe(STUDIES / "cub200-224.toml", changes), tmp_path / "run", quiet=True)
    )
    assert metrics["test_examples"] == 1389
    assert (tmp_path / "run" / "report.html").stat().st_size < 3_000_000
