"""Class maps and attention maps look where the reasons are."""

import sys

import numpy as np
import pytest
import torch
from extras import needs

from fgvc_core.errors import ConfigurationError
from fgvc_core.experiment import make_learner
from fgvc_core.explain.attention_maps import attention_maps
from fgvc_core.explain.class_maps import METHODS, ClassMaps
from fgvc_core.models.attention import SpatialAttention
from fgvc_core.recipe import parse_recipe

from .coloured import SIZE, coloured, two_patches

needs("pytorch_grad_cam", "needs the 'explain' extra")


def built(*sets):
    model = make_learner(parse_recipe("", list(sets)), 4).model.eval()
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return model


def views(size, count=2):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_class_is_seen_where_its_colour_is(method):
    maps = ClassMaps(coloured(), method)(two_patches()[None].repeat(2, 0), [0, 1])
    assert maps.shape == (2, SIZE, SIZE)
    assert maps[0, 12, 12] > 0.9
    assert maps[0, 48, 50] < 0.1
    assert maps[1, 48, 50] > 0.9
    assert maps[1, 12, 12] < 0.1


def test_this_and_not_that_shows_what_speaks_for_the_one_alone():
    # A grey picture with one red patch: all of it is a little red and as blue.
    view_HWC = np.full((SIZE, SIZE, 3), 90, dtype=np.uint8)
    view_HWC[8:16, 8:16, 0] = 255
    make = ClassMaps(coloured(), "hirescam")
    alone_HW = make(view_HWC[None], [0])[0]
    against_HW = make(view_HWC[None], [0], [1])[0]
    assert against_HW[12, 12] == pytest.approx(1, abs=1e-3)
    assert against_HW[48, 48] == pytest.approx(0, abs=1e-3)
    assert make(view_HWC[None], [1], [0])[0].argmax() != 12 * SIZE + 12
    assert alone_HW[12, 12] == pytest.approx(1, abs=1e-3)


def test_a_mirrored_models_map_is_of_both_views_and_mirrors_with_the_picture():
    make = ClassMaps(coloured(mirrored=True), "hirescam")
    view_HWC = two_patches()
    map_HW = make(view_HWC[None], [0])[0]
    flipped_HW = make(np.ascontiguousarray(view_HWC[None, :, ::-1]), [0])[0]
    assert map_HW[12, 12] > 0.9
    assert np.allclose(map_HW, flipped_HW[:, ::-1], atol=1e-5)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_closer_look_is_kept_fixed_and_the_map_is_of_the_whole_picture(mirrored):
    model = coloured(mirrored=mirrored)
    model.closer = 0.5
    map_HW = ClassMaps(model, "hirescam")(two_patches()[None], [0])[0]
    assert map_HW[12, 12] > 0.9
    assert map_HW[48, 50] < 0.1


def test_a_model_that_turns_its_pictures_is_refused():
    model = coloured()
    model.before = torch.nn.AvgPool2d(1)
    with pytest.raises(ConfigurationError, match="turns its pictures"):
        ClassMaps(model)
    assert attention_maps(model, two_patches()[None]) is None


def test_the_model_is_left_as_it_was_and_a_frozen_backbone_is_explained_too():
    model = built("model.train='head'", "data.image_size=32")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trains = [p.requires_grad for p in model.parameters()]
    maps = ClassMaps(model)(views(32), [1, 2], [0, 0])
    assert maps.max() > 0.5
    assert [p.requires_grad for p in model.parameters()] == trains
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    "sets",
    [
        ("model.backbone='vit_tiny_patch16_224'", "model.attention='none'"),
        ("model.backbone='mobilenetv3_small_050'", "model.pooling='gem'"),
        ("model.attention='nonlocal'", "model.pooling='bilinear'", "model.pooling_channels=4"),
    ],
    ids=["vision transformer", "timm, gem", "non-local, bilinear"],
)
def test_backbones_of_all_kinds_have_maps(sets):
    maps = ClassMaps(built(*sets))(views(64), [0, 1])
    assert maps.shape == (2, 64, 64)
    assert np.isfinite(maps).all()
    assert maps.max(axis=(1, 2)).min() > 0.5


def test_a_network_that_keeps_no_places_is_refused_and_so_is_an_unknown_stage():
    with pytest.raises(ConfigurationError, match="keep no places"):
        ClassMaps(built("model.backbone='mixer_s32_224'"))
    with pytest.raises(ConfigurationError, match="stage9") as caught:
        ClassMaps(coloured(), stage="stage9")
    assert "stem" in caught.value.remedy
    with pytest.raises(ConfigurationError, match="gradcam"):
        ClassMaps(coloured(), method="gradcan")


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(ConfigurationError, match="'explain' extra"):
        ClassMaps(coloured())


def test_a_spatial_gate_shows_what_it_lets_through():
    attention = SpatialAttention()
    with torch.no_grad():
        attention.conv.weight[0, 0, 3, 3] = 1 / 40
    map_HW = attention_maps(coloured(attention=attention), two_patches()[None])[0]
    assert map_HW[12, 12] > 0.9
    assert map_HW[30, 30] < 0.1


def test_attention_of_tokens_is_followed_to_the_picture_and_channels_have_no_places():
    found = attention_maps(
        built("model.backbone='vit_tiny_patch16_224'", "model.attention='none'"), views(64)
    )
    assert found.shape == (2, 64, 64)
    assert found.max() == pytest.approx(1)
    assert attention_maps(built("model.attention='se'", "data.image_size=32"), views(32)) is None


def test_a_gate_that_has_learnt_nothing_is_told_to_look_nowhere():
    found = attention_maps(built("data.image_size=32"), views(32))
    assert not found.any()
