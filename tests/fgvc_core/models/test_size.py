"""How large a model is, counted without its values, against the model itself."""

import json
import subprocess
import sys

import pytest
import torch

from fgvc_core.errors import ConfigurationError
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.size import kept_bytes, model_size
from fgvc_core.models.trainable import travelling_names

SHAPES = [
    {},
    {"train": "head"},
    {"train": "norm", "backbone": "resnet18"},
    {"norm": "group", "backbone": "resnet18"},
    {"norm": "standardised", "backbone": "resnet18"},
    {"pooling": "bilinear", "pooling_channels": 16},
    {"head": "cosine", "attention": "none"},
    {"backbone": "vit_tiny_patch16_224"},
    {"spatial_transformer": True},
]


@pytest.mark.parametrize("given", SHAPES, ids=str)
def test_it_is_the_size_of_the_model_that_is_built(given):
    settings = ModelSettings(**given)
    counted = model_size(settings, 7, 64)
    model = build_classifier(settings, 7, 64, seed=3)
    state = model.state_dict()
    assert counted.parameters == sum(t.numel() for t in state.values())
    assert counted.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counted.travelling == sum(state[name].numel() for name in travelling_names(model))
    assert counted.features == model.feature_dim


@pytest.mark.parametrize("weights", ["/nowhere/w.safetensors", "sha256:" + "0" * 64, "package"])
def test_its_weights_are_not_looked_at(weights):
    plain = ModelSettings(backbone="resnet18", train="head")
    there = plain.model_copy(update={"weights": weights})
    assert model_size(there, 5, 64) == model_size(plain, 5, 64)


def test_a_head_in_a_public_subspace_is_counted_without_the_weights_that_span_it():
    settings = ModelSettings(backbone="tf_efficientnet_lite0", head="subspace", train="head")
    assert model_size(settings, 5, 64).parameters > 3_000_000


def test_an_unknown_backbone_and_a_size_that_does_not_suit_are_said():
    with pytest.raises(ConfigurationError, match="is unknown"):
        model_size(ModelSettings(backbone="resnet_of_nobody"), 5, 64)
    with pytest.raises(ConfigurationError, match="does not suit"):
        kept_bytes(ModelSettings(backbone="coat_mini"), 5, 64)


COUNT = """
import json
from pathlib import Path
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.size import model_size
held = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
model_size(ModelSettings(), 5, 64)
before = held()
size = model_size(ModelSettings(backbone="eva02_enormous_patch14_clip_224"), 200, 224)
print(json.dumps([size.parameters, held() - before]))
"""


def test_seventeen_gigabytes_of_parameters_are_counted_in_less_than_a_hundred_megabytes():
    done = subprocess.run(
        (sys.executable, "-c", COUNT), capture_output=True, text=True, timeout=120, check=True
    )
    parameters, grown = json.loads(done.stdout.splitlines()[-1])
    assert parameters > 4_300_000_000
    assert grown < 100_000_000


def kept_in_truth(settings, pictures, size):
    """Bytes that a real step keeps, each storage once, parameters left out."""
    model = build_classifier(settings, 7, size, seed=3).train()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    held = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(model.normalise(torch.zeros(pictures, 3, size, size, dtype=torch.uint8)))
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.parametrize("backbone", ["fieldmark_nano", "resnet18", "vit_tiny_patch16_224"])
def test_what_a_step_keeps_is_what_a_real_step_keeps(backbone):
    settings = ModelSettings(backbone=backbone)
    truth = (kept_in_truth(settings, 9, 64) - kept_in_truth(settings, 3, 64)) / 6
    assert kept_bytes(settings, 7, 64) == pytest.approx(truth, rel=0.02)


def test_a_frozen_backbone_keeps_nothing_for_a_step():
    assert kept_bytes(ModelSettings(train="head"), 7, 64) == 0


def test_more_pixels_keep_more():
    small, large = (kept_bytes(ModelSettings(), 7, size) for size in (64, 128))
    assert 3.5 < large / small < 4.5
