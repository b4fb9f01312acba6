"""The Opacus engine on whole networks: equal to the loop, and gone without a trace."""

import copy

import numpy as np
import pytest
import torch
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
from timm.layers.norm import GroupNorm, GroupNorm1, LayerNorm
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d
from torch import nn
from torch.nn import functional as F

from fgvc_core.errors import PolicyRefusal
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.trainable import get_tensors, travelling_names
from fgvc_core.privacy.gradients import LoopEngine, UnitBatch
from fgvc_core.privacy.hooks import OpacusEngine
from fgvc_core.privacy.samplers import register_samplers, standardised_conv_grads

CLASSES = 5
BATCH = UnitBatch(np.array([0, 1, 2, 3, 4, 5]), np.array([0, 1, 1, 2, 0, 4]), 5)


def network(**settings):
    model = build_classifier(ModelSettings(**settings), CLASSES, 32, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            # A head of zeros would leave the rest without a gradient.
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.double().train()


def engines(model, **options):
    torch.manual_seed(5)
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    labels = torch.arange(6) % CLASSES
    parameters = [p for p in model.parameters() if p.requires_grad]

    def losses(positions):
        return F.cross_entropy(model(images[positions]), labels[positions], reduction="none")

    return LoopEngine(parameters, losses), OpacusEngine(model, parameters, losses, **options)


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "fieldmark_nano"},
        {"backbone": "fieldmark_nano", "head": "cosine", "pooling": "avgmax"},
        {"backbone": "fieldmark_nano", "attention": "none", "train": "stage4"},
        {"backbone": "test_nfnet"},
        {"backbone": "fieldmark_nano", "train": "head"},
    ],
    ids=lambda s: "-".join(s.values()),
)
@pytest.mark.parametrize("at_once", [2, 64])
def test_it_gives_the_loops_sum(settings, at_once):
    model = network(**settings)
    loop, opacus = engines(model, at_once=at_once)
    expected, found = loop.clipped_sum(BATCH, 0.5), opacus.clipped_sum(BATCH, 0.5)
    assert float(expected.total_D.abs().max()) > 1e-3
    assert float((found.total_D - expected.total_D).abs().max()) < 1e-9
    assert found.unclipped == expected.unclipped


@pytest.mark.parametrize("backbone", ["fieldmark_nano", "test_nfnet"])
def test_weights_standardised_once_a_step_change_no_gradient_and_leave_no_trace(backbone):
    model = network(backbone=backbone)
    loop, _ = engines(model)
    before, expected = traces(model), loop.clipped_sum(BATCH, 0.5)
    for at_once in (1, 64):
        shared = LoopEngine(loop._parameters, loop._losses, at_once=at_once, model=model)
        found = shared.clipped_sum(BATCH, 0.5)
        assert float((found.total_D - expected.total_D).abs().max()) < 1e-12
        assert found.unclipped == expected.unclipped
        assert traces(model) == before
    # Each step reads the weights anew.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    moved = shared.clipped_sum(BATCH, 0.5).total_D
    assert float((moved - loop.clipped_sum(BATCH, 0.5).total_D).abs().max()) < 1e-12
    assert float((moved - expected.total_D).abs().max()) > 1e-3


def test_a_loop_that_breaks_off_leaves_the_layers_as_they_were():
    model = network(backbone="fieldmark_nano")
    before = traces(model)

    def broken(positions):
        raise ValueError("no picture there")

    with pytest.raises(ValueError, match="no picture"):
        LoopEngine(list(model.parameters()), broken, model=model).clipped_sum(BATCH, 0.5)
    assert traces(model) == before


def test_groupnorm_networks_too():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), GroupNorm(8, 4), nn.SiLU(), StdConv2d(8, 8, 3, groups=2),
        GroupNorm1(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), LayerNorm(8), nn.Linear(8, CLASSES),
    ).double().train()  # fmt: skip
    loop, opacus = engines(model)
    expected, found = loop.clipped_sum(BATCH, 0.5), opacus.clipped_sum(BATCH, 0.5)
    assert float((found.total_D - expected.total_D).abs().max()) < 1e-9


def traces(model):
    return (
        list(model.state_dict()),
        [sorted(vars(module)) for module in model.modules()],
        [sorted(vars(parameter)) for parameter in model.parameters()],
        [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()],
        [parameter.grad for parameter in model.parameters()],
    )


def test_the_model_is_as_it_was_and_trains_on():
    model = network(backbone="fieldmark_nano")
    before, names = traces(model), travelling_names(model)
    values = copy.deepcopy(model.state_dict())
    _, opacus = engines(model)
    opacus.clipped_sum(BATCH, 1.0)
    with opacus.session():
        opacus.clipped_sum(BATCH, 1.0)
        # Also while it is hooked, names are what travels.
        assert travelling_names(model) == names
        assert list(model.state_dict()) == before[0]
    assert traces(model) == before
    assert all(torch.equal(values[name], now) for name, now in model.state_dict().items())
    assert set(get_tensors(model, names)) == set(names)
    torch.manual_seed(0)
    F.cross_entropy(model(torch.randn(2, 3, 32, 32).double()), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


class InPlace(nn.Module):
    """Changes what a hooked layer returned."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, images):
        found = self.conv(images)
        found += 1
        return self.head(found.mean(dim=(2, 3)))


def test_a_step_that_breaks_off_leaves_no_trace_either():
    model = InPlace().double().train()
    before = traces(model)
    _, opacus = engines(model)
    with pytest.raises(RuntimeError, match="modified inplace"):
        opacus.clipped_sum(BATCH, 1.0)
    assert traces(model) == before


class Borrowed(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, CLASSES, bias=False)

    def forward(self, images):
        return F.linear(images.mean(dim=(2, 3)), self.head.weight)


def test_a_parameter_used_outside_of_its_layer_is_refused():
    _, opacus = engines(Borrowed().double().train())
    with pytest.raises(PolicyRefusal, match="outside of its layer"):
        opacus.clipped_sum(BATCH, 1.0)


@pytest.mark.parametrize(
    "layer",
    [
        ScaledStdConv2d(4, 6, 3, stride=2, padding=1, gamma=1.7),
        ScaledStdConv2d(4, 8, (3, 1), groups=2, dilation=2, bias=False),
        StdConv2d(4, 6, 1, bias=True),
        StdConv2d(4, 6, 5, padding=2, groups=2),
    ],
    ids=str,
)
def test_the_samplers_gradients_are_functorchs(layer):
    torch.manual_seed(2)
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    inputs = torch.randn(3, 4, 9, 9, dtype=torch.float64)
    pushes = torch.randn_like(layer(inputs).detach())
    found = standardised_conv_grads(layer, [inputs], pushes)
    expected = ft_compute_per_sample_gradient(layer, [inputs], pushes)
    assert set(found) == set(expected) == set(layer.parameters())
    for parameter, values in found.items():
        assert values.shape == (3, *parameter.shape)
        assert float((values - expected[parameter]).detach().abs().max()) < 1e-12


def test_samplers_stand_by_exact_type_and_only_for_what_they_fit():
    from opacus.grad_sample import GradSampleModule

    register_samplers()
    samplers = GradSampleModule.GRAD_SAMPLERS
    assert samplers[ScaledStdConv2d] is samplers[StdConv2d] is standardised_conv_grads
    # Its padding depends on the picture: functorch's.
    assert ScaledStdConv2dSame not in samplers


@pytest.mark.parametrize("engine", [0, 1], ids=["loop", "opacus"])
def test_a_picture_that_is_no_number_spoils_no_other_unit(engine):
    model = network(backbone="fieldmark_nano", attention="none")
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    images[2] = torch.nan
    parameters = list(model.parameters())

    def losses(positions):
        return F.cross_entropy(model(images[positions]), positions % CLASSES, reduction="none")

    chosen = (LoopEngine, OpacusEngine)[engine]
    made = chosen(parameters, losses) if engine == 0 else chosen(model, parameters, losses)
    whole = made.clipped_sum(UnitBatch(np.arange(4), np.array([0, 1, 2, 3]), 4), 1.0)
    less = made.clipped_sum(UnitBatch(np.array([0, 1, 3]), np.array([0, 1, 2]), 3), 1.0)
    assert float((whole.total_D - less.total_D).abs().max()) < 1e-9
    assert torch.isfinite(whole.total_D).all()


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_plain_convolution_that_is_channels_last_has_the_right_gradient_by_picture(kernel):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, kernel, padding=kernel // 2)
    model = nn.Sequential(layer).double().to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    images = images.contiguous(memory_format=torch.channels_last)
    parameters = list(model.parameters())
    engine = OpacusEngine(model, parameters, lambda at: (model(images[at]) ** 2).flatten(1).sum(1))
    with engine.session():
        found = engine.picture_gradients(torch.arange(4))
    for number, parameter in enumerate(parameters):
        for picture in range(4):
            loss = (model(images[picture : picture + 1]) ** 2).sum()
            (expected,) = torch.autograd.grad(loss, parameter)
            torch.testing.assert_close(found[number][picture], expected.flatten())
