import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fgvc_core.errors import ConfigurationError
from fgvc_core.models import joined
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.size import model_size
from fgvc_core.models.subspace import classifier_rows, public_directions, row_unit
from fgvc_core.models.trainable import frozen_digest, is_frozen_backbone, travelling_names
from fgvc_core.models.weight_names import not_installed
from fgvc_core.recipe import parse_recipe

SMALL = ("test_resnet", "test_efficientnet")
LITE = ("tf_efficientnet_lite0", "tf_efficientnet_lite2")
needs_both = pytest.mark.skipif(
    bool(not_installed(LITE)), reason="the 'weights' extra is not installed"
)


def settings(backbones=SMALL, **changed):
    plain = {"attention": "none", "train": "head", "pooling": "max"}
    return ModelSettings(backbones=backbones, **{**plain, **changed})


def test_the_vectors_of_joined_backbones_are_those_of_each_in_its_unit(monkeypatch):
    monkeypatch.setattr(joined, "classifier_rows", lambda name, weights: len(name) * np.eye(3, 4))
    made = [joined.make_backbone(name, "none", 64) for name in SMALL]
    monkeypatch.setattr(joined, "make_backbone", lambda name, *_: made[SMALL.index(name)])
    model = build_classifier(settings(weights="package"), 5, 64, 0)
    images_NCHW = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        vectors_ND = model.embed(images_NCHW)
        each = [len(n) * b(images_NCHW).amax((2, 3)) for n, (b, _) in zip(SMALL, made, strict=True)]
    assert torch.equal(vectors_ND, torch.cat(each, dim=1))
    assert model.feature_dim == sum(backbone.out_channels for backbone, _ in made)
    assert vectors_ND.std() > 0


def test_only_the_head_of_joined_backbones_trains_and_travels():
    model = build_classifier(settings(), 5, 64, 0)
    assert is_frozen_backbone(model)
    assert travelling_names(model) == ("head.bias", "head.weight")
    assert model_size(settings(), 5, 64).travelling == 5 * (model.feature_dim + 1)


def test_cached_features_of_other_units_or_another_order_are_not_taken():
    model = build_classifier(settings(), 5, 64, 0)
    before = frozen_digest(model)
    assert frozen_digest(build_classifier(settings(), 5, 64, 0)) == before
    assert frozen_digest(build_classifier(settings(SMALL[::-1]), 5, 64, 0)) != before
    model.backbone.units = [1.0, 2.0]
    assert frozen_digest(model) != before


def test_backbones_whose_maps_have_other_places_are_refused():
    with pytest.raises(ConfigurationError, match="5 x 5 and 1 x 1") as caught:
        build_classifier(settings(("test_resnet", "test_vit")), 5, 160, 0)
    assert "place by place" in caught.value.why


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train": "all"}, "need train = 'head'"),
        ({"attention": "eca"}, "need attention = 'none'"),
        ({"token_selection": True}, "without attention_after and token_selection"),
        ({"weights": "sha256:" + "a" * 64}, "a file has one network's"),
        ({"backbone": "resnet10t"}, "leave backbone out"),
        ({"backbones": ("test_resnet",)}, "model.backbone = 'test_resnet'"),
        ({"backbones": ("test_resnet", "test_resnet")}, "named once"),
    ],
)
def test_what_does_not_go_with_several_backbones_is_said(changed, said):
    with pytest.raises(ValidationError, match=said):
        settings(**changed)


def test_a_recipe_of_several_backbones_is_read_back_as_it_was_written():
    text = f"[model]\nbackbones = {list(SMALL)}\nattention = 'none'\ntrain = 'head'"
    recipe = parse_recipe(text)
    assert parse_recipe(recipe.to_toml()) == recipe
    assert recipe.model.title == "test_resnet + test_efficientnet"
    assert recipe.model.networks == SMALL


@needs_both
def test_joint_directions_are_orthonormal_and_tell_related_classes_apart_by_both_networks():
    found = settings(LITE, weights="package", related_classes=("7-24", "80-100", "127-146"))
    directions_PD = public_directions(found, 2560).double()
    assert directions_PD.shape == (58, 2560)
    assert torch.allclose(directions_PD @ directions_PD.T, torch.eye(58).double(), atol=1e-5)
    # Both networks contribute: neither half is without weight.
    halves = directions_PD.square().reshape(58, 2, 1280).sum(dim=(0, 2)) / 58
    assert halves.min() > 0.3


@needs_both
def test_units_leave_the_joined_logits_as_they_are():
    rows = [classifier_rows(name, "package") for name in LITE]
    rng = np.random.default_rng(3)
    vectors = [rng.normal(size=rows_CD.shape[1]) for rows_CD in rows]
    joint_CD = np.concatenate([rows_CD / row_unit(rows_CD) for rows_CD in rows], axis=1)
    pairs = list(zip(rows, vectors, strict=True))
    joint_D = np.concatenate([vector_D * row_unit(rows_CD) for rows_CD, vector_D in pairs])
    np.testing.assert_allclose(joint_CD @ joint_D, sum(r @ v for r, v in pairs), rtol=1e-9)


@needs_both
def test_packaged_networks_lie_side_by_side():
    model = build_classifier(settings(LITE, weights="package"), 5, 64, 0)
    assert model.input.crop == 0.875
    assert model.backbone.units == pytest.approx([2.3033, 2.0210], abs=1e-3)
