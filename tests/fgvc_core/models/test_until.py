import pytest
import torch
from pydantic import ValidationError

from fgvc_core.errors import ConfigurationError
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.size import model_size
from fgvc_core.models.trainable import frozen_digest, is_frozen_backbone, travelling_names

PLAIN = {"backbone": "test_efficientnet", "attention": "none", "train": "head"}


def settings(until="blocks.1", **changed):
    return ModelSettings(**{**PLAIN, "until": until, **changed})


@pytest.mark.parametrize(
    ("backbone", "stage"), [("test_efficientnet", "blocks.1"), ("test_resnet", "layer2")]
)
def test_the_map_is_that_of_the_named_stage_in_the_whole_network(backbone, stage):
    whole = build_classifier(settings("", backbone=backbone), 5, 64, 0)
    cut = build_classifier(settings(stage, backbone=backbone), 5, 64, 0)
    images_NCHW = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    seen = []
    whole.backbone.model.get_submodule(stage).register_forward_hook(
        lambda module, given, found: seen.append(found)
    )
    with torch.inference_mode():
        whole.map(images_NCHW)
        map_NCHW = cut.map(images_NCHW)
    assert torch.equal(map_NCHW, seen[0])
    assert map_NCHW.std() > 0
    assert cut.feature_dim == map_NCHW.shape[1]
    assert stage in cut.stage_names
    assert len(cut.stage_names) < len(whole.stage_names)


def test_what_is_left_out_is_neither_held_nor_counted():
    cut, whole = settings(), settings("")
    assert model_size(cut, 5, 64).parameters < model_size(whole, 5, 64).parameters
    model = build_classifier(cut, 5, 64, 0)
    assert is_frozen_backbone(model)
    assert travelling_names(model) == ("head.bias", "head.weight")
    assert frozen_digest(model) != frozen_digest(build_classifier(settings("blocks.0"), 5, 64, 0))


def test_the_directions_of_a_subspace_head_are_the_channels():
    for head in ("subspace", "whitened"):
        model = build_classifier(settings(head=head), 5, 64, 0)
        assert torch.equal(model.head.directions_PD, torch.eye(model.feature_dim))


def test_an_unknown_stage_is_answered_with_the_nearest():
    with pytest.raises(ConfigurationError, match="no stage of this backbone") as caught:
        build_classifier(settings("blocks.l"), 5, 64, 0)
    assert "blocks.0" in caught.value.remedy


def test_our_own_network_cannot_end_early():
    with pytest.raises(ConfigurationError, match="none of timm's models"):
        build_classifier(settings("stage1", backbone="fieldmark_nano"), 5, 64, 0)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"train": "all"}, "until needs train = 'head'"),
        ({"related_classes": ("1-3",)}, "until and related_classes"),
        ({"backbone": "fieldmark_nano", "backbones": ("a", "b")}, "until and backbones"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changed, why):
    with pytest.raises(ValidationError, match=why):
        settings(**changed)
