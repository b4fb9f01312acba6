"""A checkpoint gives back the model that wrote it."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.experiment import make_learner
from fgvc_core.inference.trained import load_trained
from fgvc_core.recipe import parse_recipe
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState

RECIPE = parse_recipe("[data]\nimage_size = 32\n[model]\nbackbone = 'fieldmark_nano'\n")


@pytest.fixture
def run(tmp_path):
    learner = make_learner(RECIPE, 3)
    tensors = {n: np.asarray(a + 0.01, np.float32) for n, a in learner.tensors().items()}
    learner.load(tensors)
    checkpoints = Checkpoints(tmp_path, RECIPE, ("a", "b", "c"))
    moments = {"moment": np.ones(3, np.float32)}
    checkpoints.write("best", tensors, RunState("run"), moments)
    return tmp_path, learner.model.eval()


def test_a_runs_folder_gives_its_best_model_with_the_same_logits(run):
    folder, model = run
    trained = load_trained(folder)
    views_NHWC = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    import torch

    with torch.no_grad():
        expected_NK = model(model.normalise(torch.from_numpy(views_NHWC).permute(0, 3, 1, 2)))
    assert trained.class_names == ("a", "b", "c")
    assert torch.equal(trained.logits(views_NHWC), expected_NK)
    assert trained.recipe.digest == RECIPE.digest


def test_a_picture_of_any_size_becomes_the_square_that_the_model_sees(run):
    trained = load_trained(run[0] / "checkpoints" / "best.safetensors")
    assert trained.view(np.zeros((45, 90, 3), np.uint8)).shape == (32, 32, 3)


def test_a_folder_without_a_checkpoint_is_wrong_usage(tmp_path):
    with pytest.raises(ConfigurationError, match="no checkpoint"):
        load_trained(tmp_path)


def test_a_tensor_file_that_no_run_wrote_is_bad_data(tmp_path):
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "best.safetensors")
    with pytest.raises(DataError, match="says nothing of a recipe"):
        load_trained(tmp_path)
