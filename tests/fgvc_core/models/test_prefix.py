import pytest
import torch
from torch import nn

from fgvc_core.models.build import build_classifier
from fgvc_core.models.prefix import FrozenPrefix, NoCut
from fgvc_core.models.settings import ModelSettings


def build(backbone, stage, size=64, **settings):
    chosen = {"attention": "none", "train": stage, **settings}
    return build_classifier(ModelSettings(backbone=backbone, **chosen), 4, size, 0)


def pictures(model, count=3):
    generator = torch.Generator().manual_seed(5)
    side = model.input.size
    return torch.randn(count, 3, side, side, generator=generator)


@pytest.mark.parametrize(
    ("backbone", "stage", "size", "shape"),
    [
        ("test_resnet", "layer3", 64, (48, 8, 8)),
        ("test_efficientnet", "blocks.3", 64, (32, 8, 8)),
        ("test_efficientnet", "blocks", 64, (24, 32, 32)),
        ("test_efficientnet", "conv_head", 64, (64, 2, 2)),
        ("test_convnext", "stages.2", 64, (32, 8, 8)),
        ("test_vit", "blocks.3", 160, (101, 64)),
        ("fieldmark_nano", "stage3", 64, (64, 16, 16)),
        ("densenet121", "features.denseblock3", 64, (256, 4, 4)),
    ],
)
def test_the_two_parts_compute_what_the_whole_does(backbone, stage, size, shape):
    model = build(backbone, stage, size)
    prefix = FrozenPrefix(model, stage)
    images_NCHW = pictures(model)
    with torch.no_grad():
        map_NCHW = prefix.map(images_NCHW)
        assert map_NCHW.shape == (3, *shape) == (3, *prefix.shape)
        torch.testing.assert_close(
            prefix.rest(map_NCHW), model.map(images_NCHW), rtol=1e-4, atol=1e-5
        )


def test_a_step_has_the_gradients_of_the_whole_network_and_leaves_the_model_as_it_was():
    model = build("test_efficientnet", "blocks.3")
    before = {name: module.forward for name, module in model.named_modules()}
    images_NCHW = pictures(model)
    prefix = FrozenPrefix(model, "blocks.3")
    found = []
    for of in (lambda: model.map(images_NCHW), lambda: prefix.rest(prefix.map(images_NCHW))):
        model.train()
        model.zero_grad()
        model.classify(model.pooled(of())).square().sum().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys() != set()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)
    assert {name: module.forward for name, module in model.named_modules()} == before
    assert not any(len(m._forward_pre_hooks) for m in model.modules())


def test_nothing_is_cut_in_front_of_the_first_stage():
    model = build("test_resnet", "conv1")
    with pytest.raises(NoCut, match="nothing is in front of 'conv1'"):
        FrozenPrefix(model, "conv1")


def test_a_model_whose_front_trains_is_not_cut():
    model = build("test_resnet", "layer3")
    model.backbone.model.bn1.weight.requires_grad_(True)
    with pytest.raises(NoCut, match="trains, too"):
        FrozenPrefix(model, "layer3")


class TwoMaps(nn.Module):
    """A backbone whose stages are joined by two maps."""

    stage_names = ("one", "two")
    idle = frozenset()
    out_channels = 4

    def __init__(self, twice=False):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.twice = twice

    def forward(self, images_NCHW):
        early_NCHW = self.one(images_NCHW)
        late_NCHW = self.two(early_NCHW)
        return self.two(late_NCHW) if self.twice else late_NCHW + early_NCHW


@pytest.mark.parametrize("twice", [False, True])
def test_a_backbone_with_two_maps_or_a_stage_that_runs_twice_is_not_cut(twice):
    model = build("fieldmark_nano", "stage3", 32)
    model.backbone = TwoMaps(twice)
    for parameter in model.backbone.one.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(NoCut):
        FrozenPrefix(model, "two")
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(len(module._forward_pre_hooks) for module in model.modules())


def test_mirroring_does_not_commute_with_real_kernels():
    model = build("test_efficientnet", "blocks.3")
    prefix, images_NCHW = FrozenPrefix(model, "blocks.3"), pictures(model)
    mirrored = prefix.map(images_NCHW.flip(-1))
    assert float((mirrored - prefix.map(images_NCHW).flip(-1)).abs().max()) > 1e-2
