import pytest
import torch
from timm.layers.std_conv import ScaledStdConv2d
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fgvc_core.models.backbones import PRESETS, AttentionResNet
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings


@pytest.fixture(scope="module", params=PRESETS)
def named(request):
    return request.param, AttentionResNet(PRESETS[request.param]).eval()


@torch.no_grad()
def test_each_preset_gives_a_map_of_its_own_shape(named):
    name, network = named
    map_NCHW = network(torch.zeros(2, 3, 64, 64))
    side = 2 if PRESETS[name].deep_stem else 4
    assert map_NCHW.shape == (2, PRESETS[name].channels[-1], side, side)
    assert network.out_channels == PRESETS[name].channels[-1]


@torch.no_grad()
@pytest.mark.parametrize("size", [33, 47])
def test_an_odd_side_is_rounded_up(size):
    map_NCHW = AttentionResNet(PRESETS["fieldmark_nano"])(torch.zeros(1, 3, size, size))
    assert map_NCHW.shape[2:] == (-(-size // 16),) * 2


def test_no_preset_couples_examples_or_writes_over_what_a_hook_reads(named):
    _, network = named
    modules = list(network.modules())
    assert not any(isinstance(m, _BatchNorm | _InstanceNorm) for m in modules)
    assert not any(getattr(m, "inplace", False) for m in modules)
    assert not list(network.buffers())
    assert any(isinstance(m, ScaledStdConv2d) for m in modules)


def test_the_stages_are_the_whole_network_in_order(named):
    _, network = named
    in_stages = sum(
        p.numel()
        for stage in network.stage_names
        for p in network.get_submodule(stage).parameters()
    )
    assert in_stages == sum(p.numel() for p in network.parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", ["fieldmark_nano", "fieldmark_tiny", "fieldmark_small"])
def test_the_signal_neither_dies_nor_explodes_on_its_way(name):
    torch.manual_seed(0)
    network = AttentionResNet(PRESETS[name])
    # As smooth as pictures are: the pooling of a shortcut would average white noise away.
    map_NCHW = F.interpolate(torch.randn(8, 3, 4, 4), size=64, mode="bilinear")
    map_NCHW /= map_NCHW.std()
    for stage in network.stage_names:
        map_NCHW = network.get_submodule(stage)(map_NCHW)
        assert 0.4 < map_NCHW.std() < 2.5


def test_a_seed_decides_every_tensor_and_no_generator_outside_is_moved():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    one = build_classifier(ModelSettings(head="cosine"), 5, 32, seed=3).state_dict()
    assert torch.equal(torch.rand(3), expected)
    two = build_classifier(ModelSettings(head="cosine"), 5, 32, seed=3).state_dict()
    other = build_classifier(ModelSettings(head="cosine"), 5, 32, seed=4).state_dict()
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
