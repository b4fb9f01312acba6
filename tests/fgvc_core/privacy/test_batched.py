"""The batched engine on whole networks: the loop's sum, whatever the layers and the units."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fgvc_core.errors import PolicyRefusal
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.privacy.batched import BatchedEngine
from fgvc_core.privacy.gradients import LoopEngine, UnitBatch
from fgvc_core.privacy.settings import PIECE

CLASSES, PICTURES = 5, 24
# Units of one and of several pictures, one of them (3) drawn and empty, in no order.
UNITS = UnitBatch(np.array([0, 1, 2, 3, 4, 5]), np.array([0, 1, 1, 2, 0, 4]), 5)
# More pictures than a piece, in a unit larger than a piece and in small ones.
LARGE = UnitBatch(np.arange(PICTURES), np.array([0, 0] + [1] * 19 + [2, 3, 3]), 4)
GROUPS = [[0, 0, 1, 1, 2]]


def network(size=32, **settings):
    torch.manual_seed(1)
    model = build_classifier(ModelSettings(**settings), CLASSES, size, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            # Layers that start at zero would leave the rest without a gradient.
            parameter.add_(0.05 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # Statistics of the pictures are refused before; fixed ones are a layer like others.
            module.requires_grad_(False)
    return model.train()


def engines(model, size=32, dtype=torch.float64, **options):
    torch.manual_seed(5)
    model.to(dtype)
    images = torch.randn(PICTURES, 3, size, size, dtype=dtype)
    labels = torch.arange(PICTURES) % CLASSES
    parameters = [p for p in model.parameters() if p.requires_grad]

    def losses(positions):
        return F.cross_entropy(model(images[positions]), labels[positions], reduction="none")

    return LoopEngine(parameters, losses), BatchedEngine(model, parameters, losses, **options)


def assert_equal(model, batch, bound=0.5, size=32, **options):
    loop, batched = engines(model, size, **options)
    expected, found = loop.clipped_sum(batch, bound), batched.clipped_sum(batch, bound)
    assert float(expected.total_D.abs().max()) > 1e-3
    assert float((found.total_D - expected.total_D).abs().max()) < 1e-9
    assert found.unclipped == expected.unclipped


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"head": "cosine", "pooling": "avgmax", "attention": "cbam"},
        {"attention": "none", "train": "stage4", "head": "multilevel", "class_groups": GROUPS},
        {"attention": "dual", "pooling": "mpncov", "pooling_channels": 8},
        {"attention": "se", "pooling": "parts"},
        {"attention": "eca", "pooling": "gem", "spatial_transformer": True},
        {"backbone": "test_nfnet", "attention": "nonlocal"},
        {"backbone": "test_vit"},
    ],
    ids=lambda s: "-".join(str(value) for value in s.values()) or "default",
)
def test_it_gives_the_loops_sum(settings):
    known = set(ModelSettings.model_fields)
    chosen = {"backbone": "fieldmark_nano", **settings}
    assert_equal(network(**{k: v for k, v in chosen.items() if k in known}), UNITS)


OF_TIMM = {
    "convnext_atto": 32,
    "convnextv2_atto": 32,
    "deit_tiny_patch16_224": 32,
    "vit_tiny_patch16_224": 32,
    "swin_tiny_patch4_window7_224": 224,
    "resnetv2_50x1_bit": 32,
    "nf_resnet26": 32,
    "eca_nfnet_l0": 64,
    "poolformer_s12": 32,
    "edgenext_xx_small": 64,
    "resnet10t": 32,
    "tf_efficientnet_lite0": 32,
    "mobilenetv3_small_050": 32,
}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", OF_TIMM)
def test_it_gives_the_loops_sum_for_networks_of_timm(backbone):
    size = OF_TIMM[backbone]
    model = network(size, backbone=backbone, attention="none")
    for module in model.modules():
        # Fixed statistics, and no draws: the engines would draw differently.
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or "Drop" in type(module).__name__:
            module.eval()
    few = UnitBatch(np.array([0, 1, 2]), np.array([0, 1, 1]), 2)
    assert_equal(model, few, size=size, at_once=3)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["fieldmark_tiny", "fieldmark_small", "fieldmark_50"])
def test_it_gives_the_loops_sum_for_our_larger_networks(backbone):
    few = UnitBatch(np.array([0, 1, 2]), np.array([0, 1, 1]), 2)
    assert_equal(network(64, backbone=backbone), few, size=64, at_once=3)


def test_in_float32_it_agrees_to_a_millionth():
    loop, batched = engines(network(backbone="fieldmark_nano"), dtype=torch.float32)
    expected = loop.clipped_sum(UNITS, 0.5).total_D
    found = batched.clipped_sum(UNITS, 0.5).total_D
    assert float((found - expected).norm()) < 1e-6 * float(expected.norm()) * 4


@pytest.mark.parametrize("at_once", [1, 4, PIECE])
def test_pieces_change_no_sum_also_of_units_larger_than_one(at_once):
    model = network(backbone="fieldmark_nano", train="stage4")
    assert_equal(model, LARGE, at_once=at_once)


def test_groupnorm_and_layernorm():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.GroupNorm(4, 8), nn.SiLU(),
        nn.Conv2d(8, 8, 3, groups=8, dilation=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.LayerNorm(8), nn.Linear(8, CLASSES),
    ).train()  # fmt: skip
    assert_equal(model, UNITS)


class Tied(nn.Module):
    """One weight in two layers, a layer called twice, and a parameter used without a layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.token = nn.Parameter(torch.randn(1, 1, 3))
        self.gain = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(3, CLASSES)

    def forward(self, images):
        vectors_N13 = images.mean(dim=(2, 3))[:, None]
        tokens_N13 = self.token.expand(len(images), -1, -1)
        both_N23 = torch.cat([tokens_N13, vectors_N13], dim=1)
        both_N23 = self.first(both_N23) + self.second(self.first(both_N23).tanh())
        found = both_N23.sum(dim=1)
        found *= self.gain
        return self.head(found) + F.linear(found, self.head.weight * 2.0)


def test_shared_and_tied_weights_and_parameters_without_a_layer():
    assert_equal(Tied().train(), LARGE)


def test_the_bits_of_a_unit_do_not_depend_on_the_units_beside_it():
    _, batched = engines(network(backbone="fieldmark_nano"), dtype=torch.float32)
    alone = batched.clipped_sum(UnitBatch(np.array([3, 9]), np.zeros(2, dtype=np.int64), 1), 1e9)
    for before in range(12):
        positions = np.array([*range(10, 10 + before), 3, 9, 1, 2])
        units = np.array([*range(before), before, before, before + 1, before + 2])
        found = next(batched._sums(torch.from_numpy(positions), units))
        assert torch.equal(found[before], alone.total_D), before


def test_a_picture_that_is_no_number_spoils_no_other_unit():
    model = network(backbone="fieldmark_nano", attention="none").double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    images[2] = torch.nan
    parameters = list(model.parameters())

    def losses(positions):
        return F.cross_entropy(model(images[positions]), positions % CLASSES, reduction="none")

    engine = BatchedEngine(model, parameters, losses)
    whole = engine.clipped_sum(UnitBatch(np.arange(4), np.arange(4), 4), 1.0)
    less = engine.clipped_sum(UnitBatch(np.array([0, 1, 3]), np.arange(3), 3), 1.0)
    assert float((whole.total_D - less.total_D).abs().max()) < 1e-9
    assert torch.isfinite(whole.total_D).all()
    assert whole.unclipped == less.unclipped


def test_the_model_is_left_as_it_was():
    model = network(backbone="fieldmark_nano", train="stage4")
    before = [(p.requires_grad, p.grad, p._version) for p in model.parameters()]
    engines(model.double())[1].clipped_sum(UNITS, 1.0)
    assert [(p.requires_grad, p.grad, p._version) for p in model.parameters()] == before
    assert all(not m._forward_hooks and not m._backward_hooks for m in model.modules())


class Unseen(torch.autograd.Function):
    """An operation of its own, which no trace sees."""

    @staticmethod
    def forward(context, values, weight):
        context.save_for_backward(values, weight)
        return values * weight

    @staticmethod
    def backward(context, gradient):
        values, weight = context.saved_tensors
        return gradient * weight, (gradient * values).sum(dim=0)


def test_a_parameter_that_is_used_unseen_is_refused():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.head = nn.Linear(3, CLASSES)

        def forward(self, images):
            return self.head(Unseen.apply(images.mean(dim=(2, 3)), self.scale))

    _, batched = engines(Model())
    with pytest.raises(PolicyRefusal, match="not seen"):
        batched.clipped_sum(UNITS, 1.0)


def test_a_large_model_takes_fewer_pictures_at_once():
    wide = nn.Linear(3, 1 << 21)
    engine = BatchedEngine(wide, list(wide.parameters()), lambda positions: positions)
    assert engine.at_once == 4
