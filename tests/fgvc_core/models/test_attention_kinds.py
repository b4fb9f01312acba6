"""Every attention: the identity at first, safe on an empty batch, trains, goes anywhere."""

import pytest
import torch

from fgvc_core.components import ATTENTIONS
from fgvc_core.errors import ConfigurationError
from fgvc_core.models.build import build_classifier, make_attention
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.trainable import travelling_names

GENERATOR = torch.Generator().manual_seed(0)
MAP = torch.randn(3, 16, 5, 4, generator=GENERATOR)


def build(**settings):
    return build_classifier(ModelSettings(**settings), 3, 32, 0)


@pytest.mark.parametrize("kind", ATTENTIONS.built_in)
def test_it_starts_as_the_identity_and_takes_an_empty_batch(kind):
    attention = make_attention(ModelSettings(attention=kind), 16)
    torch.testing.assert_close(attention(MAP), MAP)
    assert attention(MAP[:0]).shape == (0, 16, 5, 4)


@pytest.mark.parametrize("kind", sorted(set(ATTENTIONS.built_in) - {"none"}))
def test_two_steps_reach_every_parameter_and_couple_no_examples(kind):
    torch.manual_seed(0)
    attention = make_attention(ModelSettings(attention=kind), 16)
    optimizer = torch.optim.SGD(attention.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        (attention(MAP) ** 3).mean().backward()
        optimizer.step()
    reached = {
        n: p.grad is not None and bool(p.grad.any()) for n, p in attention.named_parameters()
    }
    # A bias of the keys shifts all scores of a query alike: softmax does not see it.
    assert [n for n, yes in reached.items() if not yes and not n.endswith("key.bias")] == []
    assert not torch.allclose(attention(MAP), MAP)
    assert attention(MAP).shape == MAP.shape
    alone = torch.cat([attention(MAP[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(attention(MAP), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "stages"),
    [
        ("fieldmark_nano", ("stage2", "stage4")),
        ("resnet10t", ("layer2", "layer4")),
        ("test_efficientnet", ("blocks.1",)),
        ("mobilenetv3_small_050", ("blocks.2", "blocks")),
    ],
)
def test_behind_chosen_stages_a_backbone_keeps_its_meaning(backbone, stages):
    plain = build(backbone=backbone, attention="none")
    attended = build(backbone=backbone, attention="cbam", attention_after=stages, train="head")
    images_NCHW = torch.randn(2, 3, 32, 32, generator=GENERATOR)
    torch.testing.assert_close(attended.embed(images_NCHW), plain.embed(images_NCHW))
    whole = build(backbone=backbone, attention="se", attention_after=stages[:1])
    names = travelling_names(whole)
    assert any("expand.weight" in name for name in names)
    later = build(backbone=backbone, attention="se", attention_after=stages[:1], train=stages[0])
    assert set(travelling_names(later)) <= set(names)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attention_after": ("stage9",)}, "'stage9', which is no stage"),
        ({"backbone": "test_vit", "attention_after": ("blocks.0",)}, "gives no map of channels"),
    ],
)
def test_a_place_where_it_cannot_be_is_named(settings, said):
    with pytest.raises(ConfigurationError, match=said):
        build(attention="se", **settings)
