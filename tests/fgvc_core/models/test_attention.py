import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fgvc_core.models.attention import ChannelAttention, SpatialAttention
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings


def nano(attention="spatial"):
    model = build_classifier(ModelSettings(attention=attention), 4, 32, seed=0)
    nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return model.train()


def batch():
    generator = torch.Generator().manual_seed(2)
    images_NCHW = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    changed_NCHW = images_NCHW.clone()
    changed_NCHW[3] = 255 - changed_NCHW[3]
    return images_NCHW, changed_NCHW


def test_spatial_attention_changes_no_logit_of_a_fresh_model():
    images_NCHW, _ = batch()
    with_it, without = nano("spatial"), nano("none")
    assert any("attention.conv" in name for name, _ in with_it.named_parameters())
    assert torch.equal(
        with_it.embed(with_it.normalise(images_NCHW)), without.embed(without.normalise(images_NCHW))
    )


def test_spatial_attention_gates_between_nothing_and_twice():
    layer, map_NCHW = SpatialAttention(), torch.rand(2, 3, 5, 5) + 0.5
    for bias, factor in ((-50.0, 0.0), (50.0, 2.0)):
        nn.init.constant_(layer.conv.bias, bias)
        torch.testing.assert_close(layer(map_NCHW), map_NCHW * factor)


@pytest.mark.parametrize("channels", [16, 64, 256, 2048])
def test_channel_attention_looks_at_an_odd_number_of_neighbours_as_its_paper_says(channels):
    length = ChannelAttention(channels).conv.kernel_size[0]
    assert length % 2 == 1
    assert abs(length - (math.log2(channels) + 1) / 2) <= 1 or length == 3


def test_channel_attention_gives_each_channel_one_weight_below_one():
    layer, map_NCHW = ChannelAttention(8), torch.rand(2, 8, 3, 3) + 0.5
    ratio_NCHW = layer(map_NCHW) / map_NCHW
    torch.testing.assert_close(ratio_NCHW, ratio_NCHW[:, :, :1, :1].expand_as(ratio_NCHW))
    assert 0 < ratio_NCHW.min() <= ratio_NCHW.max() < 1


@pytest.mark.parametrize("layer", [ChannelAttention(8), SpatialAttention()], ids=["eca", "spatial"])
def test_an_empty_batch_can_be_trained_on(layer):
    map_NCHW = torch.zeros(0, 8, 4, 4, requires_grad=True)
    layer(map_NCHW).sum().backward()
    assert map_NCHW.grad.shape == (0, 8, 4, 4)


def test_an_examples_logits_do_not_depend_on_its_neighbours():
    model = nano()
    logits_NK, changed_NK = (model(model.normalise(images)) for images in batch())
    torch.testing.assert_close(logits_NK[:3], changed_NK[:3], rtol=1e-5, atol=1e-6)
    assert (logits_NK[3] - changed_NK[3]).abs().max() > 1e-3


def test_an_examples_part_of_the_weights_gradient_does_not_depend_on_its_neighbours():
    model, labels_N = nano(), torch.tensor([0, 1, 2, 3])
    parts = []
    for images_NCHW in batch():
        logits_NK = model(model.normalise(images_NCHW))
        own = F.cross_entropy(logits_NK[:3], labels_N[:3], reduction="sum")
        grads = torch.autograd.grad(own, list(model.parameters()))
        parts.append(torch.cat([g.flatten() for g in grads]))
    assert parts[0].abs().max() > 1e-3
    torch.testing.assert_close(parts[0], parts[1], rtol=1e-3, atol=1e-5)
