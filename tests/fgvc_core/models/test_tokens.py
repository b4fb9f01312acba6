"""Token selection: what is picked, what goes on, and what it is not for."""

import pytest
import torch

from fgvc_core.errors import ConfigurationError
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.tokens import TokenSelection, attention_of, picked
from fgvc_core.models.trainable import frozen_digest, travelling_names

IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(backbone="vit_tiny_patch16_224", selection=True, **settings):
    chosen = {"backbone": backbone, "attention": "none", "token_selection": selection, **settings}
    return build_classifier(ModelSettings(**chosen), 4, 64, 0)


@pytest.fixture(scope="module")
def vit():
    return build()


def test_each_heads_highest_token_is_picked_and_never_the_class_token():
    rolled = torch.zeros(1, 2, 4, 4)
    rolled[0, 0, 0] = torch.tensor([9.0, 0.1, 0.3, 0.2])
    rolled[0, 1, 0] = torch.tensor([9.0, 0.1, 0.2, 0.3])
    assert picked(rolled, 1).tolist() == [[2, 3]]
    assert picked(rolled, 3).tolist() == [[3, 3]]


def test_attention_is_what_the_layer_itself_uses(vit):
    model = vit.backbone.model
    tokens = torch.randn(2, 17, 192, generator=torch.Generator().manual_seed(1))
    layer = model.blocks[0]
    attention_NHTT = attention_of(layer, tokens)
    assert attention_NHTT.shape == (2, 3, 17, 17)
    torch.testing.assert_close(attention_NHTT.sum(dim=3), torch.ones(2, 3, 17))
    normed = layer.norm1(tokens)
    value_NHTC = layer.attn.qkv(normed).reshape(2, 17, 3, 3, 64).permute(2, 0, 3, 1, 4)[2]
    mixed = (attention_NHTT @ value_NHTC).transpose(1, 2).reshape(2, 17, 192)
    torch.testing.assert_close(layer.attn.proj(mixed), layer.attn(normed), atol=1e-5, rtol=1e-4)


def test_the_last_layer_sees_the_class_token_and_one_token_a_head(vit):
    model = vit.backbone.model
    assert vit.backbone.selection.features(IMAGES).shape == (3, 1 + 3, 192)
    assert vit.backbone(IMAGES).shape == (3, 192, 1, 1)
    seen = []
    handle = model.blocks[-1].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    vit(IMAGES)
    handle.remove()
    assert seen[0].shape == (3, 4, 192)
    assert vit(IMAGES[:0]).shape == (0, 4)


def test_with_every_token_picked_it_is_the_model_itself(vit, monkeypatch):
    model = vit.backbone.model
    everything = lambda rolled, prefix: torch.arange(1, 17).expand(len(rolled), -1)  # noqa: E731
    monkeypatch.setattr("fgvc_core.models.tokens.picked", everything)
    found = vit.backbone.selection.features(IMAGES)
    torch.testing.assert_close(found, model.forward_features(IMAGES), atol=1e-5, rtol=1e-4)


def test_everything_that_travels_has_a_gradient_and_no_picture_moves_another(vit):
    model = vit.train()
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(2))
    model(IMAGES).square().sum().backward()
    found = {name for name, p in model.named_parameters() if p.grad is not None}
    assert found == set(travelling_names(model))
    model.eval()
    changed = IMAGES.clone()
    changed[2] = changed[2].flip(-1) * 3
    torch.testing.assert_close(model(changed)[:2], model(IMAGES)[:2], atol=1e-5, rtol=1e-4)


def test_a_distilled_transformer_keeps_both_of_its_tokens():
    model = build("deit_tiny_distilled_patch16_224")
    assert model.backbone.selection.features(IMAGES).shape == (3, 2 + 3, 192)
    assert model(IMAGES).shape == (3, 4)
    plain = build("deit_tiny_distilled_patch16_224", selection=False)
    assert frozen_digest(model) != frozen_digest(plain)


@pytest.mark.parametrize("backbone", ["test_resnet", "fieldmark_nano"])
def test_a_model_without_a_class_token_is_refused(backbone):
    with pytest.raises(ConfigurationError, match=r"model\.token_selection") as caught:
        build(backbone)
    assert "ViT" in caught.value.remedy
    with pytest.raises(ConfigurationError):
        TokenSelection(object(), "nothing")
