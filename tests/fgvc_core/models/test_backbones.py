import pytest
import timm
import torch
from torch import nn

from fgvc_core.errors import ConfigurationError
from fgvc_core.models.backbones import make_backbone
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.trainable import travelling_names


def gradients_after_a_step(name, train, size=64):
    """The model, and the names of the parameters that a training step gave a gradient."""
    model = build_classifier(ModelSettings(backbone=name, train=train), 4, size, 0)
    with torch.no_grad():
        nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    model.train()
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=generator)
    model(model.normalise(images)).square().sum().backward()
    return model, {n for n, p in model.named_parameters() if p.grad is not None}


# MobileNetV3 keeps a convolution behind its last map, ConvNeXt a norm, VGG two wide layers.
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_convnext", "test_vit"])
def test_what_the_map_does_not_depend_on_neither_trains_nor_travels(name):
    model, trained = gradients_after_a_step(name, "all")
    assert bool(model.backbone.idle) == (name != "test_vit")
    assert trained == {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n in travelling_names(model) if "running" not in n}
    assert not any(n.removeprefix("backbone.") in model.backbone.idle for n in trained)


@pytest.mark.parametrize(
    ("stage", "first", "not_yet"),
    [("layer3", "layer3.0", "layer2"), ("layer4.0", "layer4.0", "layer3"), ("conv1", "conv1", "-")],
)
def test_a_timm_model_trains_from_a_named_stage_or_block_on(stage, first, not_yet):
    model, trained = gradients_after_a_step("test_resnet", stage)
    assert stage in model.stage_names
    assert any(n.startswith(f"backbone.model.{first}.") for n in trained)
    assert any(n.startswith("backbone.model.layer4.") for n in trained)
    assert any(n.startswith("attention.") for n in trained)
    assert not any(n.startswith(f"backbone.model.{not_yet}") for n in trained)


def test_a_transformer_trains_its_positions_with_its_first_part_only():
    _, whole = gradients_after_a_step("test_vit", "patch_embed")
    assert {"backbone.model.pos_embed", "backbone.model.cls_token"} <= whole
    _, late = gradients_after_a_step("test_vit", "blocks.4")
    assert not any("pos_embed" in n or "blocks.3." in n for n in late)
    assert any("blocks.5." in n for n in late)
    assert "backbone.model.norm.weight" in late


def test_a_model_of_tokens_gives_one_pooled_position_at_any_size_that_its_patches_divide():
    backbone, _ = make_backbone("test_vit", "none", 48)
    assert backbone(torch.zeros(2, 3, 48, 48)).shape == (2, backbone.out_channels, 1, 1)


def test_a_map_with_channels_last_is_turned_round():
    backbone, _ = make_backbone("test_mambaout", "none", 64)
    assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, backbone.out_channels, 2, 2)


@pytest.mark.parametrize(
    ("name", "weights", "size", "said"),
    [
        ("resnet5O", "none", 64, "'resnet50"),
        ("test_resnet.nobody_2019", "none", 64, "nobody_2019"),
        ("inception_v3", "none", 32, "data.image_size = 32"),
        ("efficientvim_m1", "none", 64, "several tensors"),
    ],
)
def test_a_backbone_that_cannot_be_had_is_explained(name, weights, size, said):
    with pytest.raises(ConfigurationError) as caught:
        make_backbone(name, weights, size)
    assert said in str(caught.value)
    assert caught.value.remedy


def test_a_hub_that_cannot_be_reached_is_explained(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigurationError, match="no route to host") as caught:
        make_backbone("test_resnet", "hub", 64)
    assert "model.weights" in caught.value.remedy


def test_an_unknown_stage_is_answered_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="names no stage") as caught:
        build_classifier(ModelSettings(backbone="test_resnet", train="layer5"), 4, 64, 0)
    assert {"all,", "head,", "norm,", "layer4,"} <= set(caught.value.remedy.split())


def test_the_norm_layers_of_a_transformer_train_and_nothing_else_of_it():
    _, trained = gradients_after_a_step("test_vit", "norm")
    inside = {n for n in trained if n.startswith("backbone.")}
    assert inside
    assert all("norm" in n for n in inside)
    assert trained - inside == {"head.weight", "head.bias"}
