import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fgvc_core.losses.base import build_loss
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.build import build_classifier
from fgvc_core.models.heads import CosineHead
from fgvc_core.models.settings import ModelSettings


def build(size=32, **settings):
    return build_classifier(ModelSettings(**settings), 5, size, 0)


def pictures(count, size=32):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("pooling", ["avg", "max", "avgmax"])
def test_an_empty_batch_goes_forward_and_back_and_moves_nothing(head, pooling):
    model = build(backbone="fieldmark_nano", head=head, pooling=pooling)
    model.train()
    logits_NK = model(model.normalise(pictures(0)))
    assert logits_NK.shape == (0, 5)
    logits_NK.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_pictures_are_normalised_to_the_models_own_mean_and_deviation():
    model = build(backbone="fieldmark_nano")
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None]
    values = model.normalise(black_and_white.expand(2, 3, 32, 32))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values[:, 0, 0, 0], torch.tensor([-2.0, 2.0]))


@pytest.mark.parametrize("settings", [{}, {"head": "cosine", "pooling": "avgmax"}])
def test_in_training_mode_a_pictures_logits_do_not_depend_on_its_neighbours(settings):
    model, images = build(backbone="fieldmark_nano", **settings), pictures(4)
    with torch.no_grad():
        for parameter in model.attention.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    model.train()
    together = model(model.normalise(images))
    alone = torch.cat([model(model.normalise(images[i : i + 1])) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_batch_is_the_mean_of_the_gradients_one_by_one():
    model, images = build(backbone="fieldmark_nano").double(), pictures(3)
    with torch.no_grad():
        model.head.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    model.train()
    loss, labels_N = build_loss(LossSettings()), torch.tensor([0, 4, 2])
    values_NCHW = model.normalise(images).double()

    def gradient(chosen):
        model.zero_grad()
        loss(model(values_NCHW[chosen]), labels_N[chosen]).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    one_by_one = torch.stack([gradient([i]) for i in range(3)]).mean(dim=0)
    torch.testing.assert_close(gradient([0, 1, 2]), one_by_one, rtol=1e-9, atol=1e-12)


def test_statistics_in_front_of_the_first_stage_that_trains_stay_still():
    model = build(64, backbone="test_resnet", train="layer4")
    norms = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}
    before = {n: m.running_mean.clone() for n, m in norms.items()}
    model.train()
    model(model.normalise(pictures(4, 64)))
    moved = {n for n, m in norms.items() if not torch.equal(before[n], m.running_mean)}
    assert moved == {n for n in norms if ".layer4." in n}
    model.eval()
    assert not any(m.training for m in model.modules())


def test_a_frozen_backbone_drops_nothing_while_the_head_drops():
    model = build(64, backbone="test_vit", train="head", dropout=0.5)
    model.train()
    assert model.dropout.training
    assert not any(m.training for m in model.backbone.modules())


def test_features_are_the_pooled_map_and_logits_the_head_of_them():
    model = build(backbone="fieldmark_nano", pooling="max")
    values_NCHW = model.normalise(pictures(2))
    features_ND = model.embed(values_NCHW)
    assert features_ND.shape == (2, model.feature_dim)
    torch.testing.assert_close(features_ND, model.backbone(values_NCHW).amax(dim=(2, 3)))
    assert torch.equal(model.classify(features_ND), model(values_NCHW))


def test_without_attention_there_is_none():
    model = build(backbone="fieldmark_nano", attention="none")
    assert isinstance(model.attention, nn.Identity)


def test_a_zero_vector_stops_the_cosine_heads_gradient_instead_of_blowing_it_up():
    head = CosineHead(3, 2, scale=16.0)
    features_ND = torch.zeros(1, 3, requires_grad=True)
    logits_NK = head(features_ND)
    logits_NK.sum().backward()
    assert not logits_NK.any()
    assert not features_ND.grad.any()


def test_cosine_logits_are_bounded_by_the_scale_and_blind_to_length():
    head = CosineHead(6, 4, scale=5.0)
    features_ND = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    assert head(features_ND).abs().max() <= 5.0 + 1e-5
    torch.testing.assert_close(head(features_ND * 37), head(features_ND), rtol=1e-4, atol=1e-5)
