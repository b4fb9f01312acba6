"""One small checkpoint in a run's folder, and its ONNX files, made once."""

import json

import numpy as np
import pytest
import torch

from fgvc_core.experiment import make_learner
from fgvc_core.export.judging import Judges
from fgvc_core.export.onnx_export import make_onnx
from fgvc_core.inference.trained import load_trained
from fgvc_core.recipe import parse_recipe
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState

NAMES = ("Crow | raven", "</script><b>", "c")

RECIPE = """
name = "small"
[data]
image_size = 32
[model]
backbone = "fieldmark_nano"
mirrored = true
pooling = "both"
"""


def write_run(folder, recipe_text=RECIPE, names=NAMES, **metrics):
    """A run's folder with one trained-looking checkpoint."""
    recipe = parse_recipe(recipe_text)
    learner = make_learner(recipe, len(names))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            if name.startswith("head."):
                parameter.normal_(generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    Checkpoints(folder, recipe, names).write("best", learner.tensors(), RunState("run"), {})
    if metrics:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def noise(count=24, size=32):
    """uint8 (N, S, S, 3): smooth pictures, each another."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return np.ascontiguousarray((fine * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def trained(run):
    return load_trained(run)


@pytest.fixture(scope="session")
def judges(trained):
    views_NHWC = noise()
    labels_N = trained.logits(views_NHWC).argmax(dim=1).numpy()
    labels_N[0] = (labels_N[0] + 1) % 3
    return Judges(views_NHWC, labels_N, "made-up pictures")


@pytest.fixture(scope="session")
def files(trained, judges):
    for extra in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(extra, reason="needs the 'export' extra")
    return make_onnx(trained, judges, Judges(noise(16), None, "others"), force=True)
