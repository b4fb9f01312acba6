"""A closer look while scoring: where it goes, and what it adds."""

import numpy as np
import pytest
import torch

from fgvc_core.data.pictures import PictureBank
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import ConfigurationError
from fgvc_core.experiment import make_learner
from fgvc_core.models.looking import centres, look
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.zoom import ZoomedExamples, cut


def learner_of(*sets, size=64):
    return make_learner(parse_recipe("", [f"data.image_size={size}", *sets]), 3)


def moved(learner):
    """The same learner with a head that says something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in learner.model.head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return learner


class Drawn:
    """Pictures that are drawn at whatever size is asked for."""

    def picture(self, row, size=None):
        random = np.random.default_rng(row)
        small = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        at = np.arange(size or 64) * 16 // (size or 64)
        return small[at][:, at]

    def content_key(self, row):
        return bytes([row]) * 32


def table_of(count):
    names = tuple(str(number) for number in range(count))
    return ExampleTable(
        source=Drawn(),
        rows=np.arange(count),
        ids=names,
        labels_N=np.arange(count) % 3,
        splits=("test",) * count,
        subjects=names,
        class_names=("a", "b", "c"),
    )


def test_the_middle_of_what_is_looked_at_is_found():
    map_NHW = torch.zeros(3, 4, 4)
    map_NHW[0, 0, 3] = 5.0
    map_NHW[1, 1:3, 1:3] = 2.0
    map_NHW[1, 0, 0] = 0.9  # below half of the highest
    torch.testing.assert_close(
        centres(map_NHW), torch.tensor([[0.125, 0.875], [0.5, 0.5], [0.5, 0.5]])
    )


def test_a_cut_is_around_its_middle_and_inside_the_picture():
    larger = torch.arange(100.0).reshape(1, 1, 10, 10).repeat(2, 1, 1, 1)
    pieces = cut(larger, torch.tensor([[0.5, 0.5], [0.0, 1.0]]), 4)
    assert torch.equal(pieces[0, 0], larger[0, 0, 3:7, 3:7])
    assert torch.equal(pieces[1, 0], larger[1, 0, 0:4, 6:10])
    assert cut(larger[:0], torch.zeros(0, 2), 4).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("pooling", ["avg", "max", "both", "gem", "bilinear", "parts"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_look_gives_the_models_own_logits_and_a_map(pooling, mirrored):
    sets = [f"model.pooling={pooling}", "model.pooling_channels=8"]
    learner = moved(learner_of(*sets, f"model.mirrored={str(mirrored).lower()}"))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits, seen = look(learner.model, images)
        torch.testing.assert_close(logits, learner.model(images))
    assert seen.shape == (2, 4, 4)
    assert (seen >= 0).all()
    assert seen.amax(dim=(1, 2)).min() > 0
    assert look(learner.model, images[:0])[1].shape == (0, 4, 4)


@pytest.mark.parametrize("backbone", ["resnet10t", "tf_efficientnet_lite0", "convnext_atto"])
def test_convolutional_backbones_of_every_kind_can_be_looked_through(backbone):
    learner = moved(learner_of(f"model.backbone={backbone}", "model.attention=none"))
    with torch.inference_mode():
        _, seen = look(learner.model, torch.randn(1, 3, 64, 64))
    assert seen.shape == (1, 2, 2)


def test_the_map_is_high_where_the_evidence_is():
    learner = learner_of("model.pooling=avg", "model.attention=none")
    model = learner.model
    map_NCHW = torch.zeros(1, model.backbone.out_channels, 4, 4)
    map_NCHW[0, 5, 3, 1] = 2.0  # for class 1
    map_NCHW[0, 6, 0, 0] = 9.0  # against it
    model.backbone.forward = lambda images: map_NCHW
    with torch.no_grad():
        model.head.weight[1, 5] = 1.0
        model.head.weight[1, 6] = -0.01
        _, seen = look(model, torch.zeros(1, 3, 64, 64))
    assert int(seen.argmax()) == 3 * 4 + 1


def test_a_model_of_tokens_is_refused_with_a_reason():
    learner = learner_of(
        "model.backbone=vit_tiny_patch16_224", "model.attention=none", "model.train=head"
    )
    with pytest.raises(ConfigurationError, match=r"evaluate\.zoom") as caught:
        look(learner.model, torch.zeros(1, 3, 64, 64))
    assert "convolutional" in caught.value.remedy


def test_scores_are_the_mean_of_both_looks(tmp_path):
    learner = moved(learner_of())
    table = table_of(4)
    zoomed = learner.scored_examples(table, tmp_path, 0.5)
    assert isinstance(zoomed, ZoomedExamples)
    positions = torch.tensor([2, 0])
    with torch.inference_mode():
        found = zoomed.logits(learner.model, positions, None)
        plain = learner.examples(table, tmp_path).logits(learner.model, positions, None)
        images = PictureBank(table, 64).batch([2, 0])
        _, seen = look(learner.model, learner.model.normalise(images))
        closer = cut(PictureBank(table, 128).batch([2, 0]), centres(seen), 64)
        second = learner.model(learner.model.normalise(closer))
    torch.testing.assert_close(found, (plain + second) / 2)
    assert not torch.allclose(plain, second, atol=1e-3)
    scored, predicted = learner.evaluate(zoomed, 3)
    assert scored.examples == len(predicted) == 4
    # Without it nothing changes, to the bit.
    same = learner.scored_examples(table, tmp_path, 0.0)
    with torch.inference_mode():
        assert torch.equal(same.logits(learner.model, positions, None), plain)


def test_a_frozen_backbone_is_looked_through_as_well(tmp_path):
    learner = moved(learner_of("model.train=head"))
    zoomed = learner.scored_examples(table_of(3), tmp_path, 0.7)
    scored, _ = learner.evaluate(zoomed, 2)
    assert scored.examples == 3


def test_a_share_that_is_too_small_is_refused():
    with pytest.raises(ConfigurationError, match=r"0\.25"):
        parse_recipe("", ["evaluate.zoom=0.1"])
