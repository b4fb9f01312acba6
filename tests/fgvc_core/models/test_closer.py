"""The closer look goes where the map is strong, and is part of a picture's vector."""

import pytest
import torch

from fgvc_core.errors import ConfigurationError
from fgvc_core.experiment import make_learner
from fgvc_core.models.build import build_classifier
from fgvc_core.models.classifier import closer_look, middle_look
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.trainable import frozen_digest
from fgvc_core.recipe import parse_recipe


def blob(row, column, size=16):
    """A map (1, 1, size, size) that is 1 on four positions around a place and 0 elsewhere."""
    map_NCHW = torch.zeros(1, 1, size, size)
    map_NCHW[0, 0, row - 1 : row + 1, column - 1 : column + 1] = 1.0
    return map_NCHW


def ramps(side=64):
    """A picture whose two channels are the row and the column, 0 to 1."""
    at_S = (torch.arange(side) + 0.5) / side
    rows_SS, columns_SS = torch.meshgrid(at_S, at_S, indexing="ij")
    return torch.stack([rows_SS, columns_SS])[None]


@pytest.mark.parametrize(("row", "column"), [(8, 8), (6, 10), (10, 6)])
def test_the_cut_square_is_centred_on_what_is_strong(row, column):
    cut_NCHW = closer_look(ramps(), blob(row, column), 1.0)
    middle_C = cut_NCHW.mean(dim=(0, 2, 3))
    assert torch.allclose(middle_C, torch.tensor([row / 16, column / 16]), atol=0.01)
    # The least half side is 0.2 of the side.
    assert cut_NCHW[0, 0].max() - cut_NCHW[0, 0].min() == pytest.approx(0.4, abs=0.02)


def test_a_square_that_would_stick_out_is_moved_inside():
    cut_NCHW = closer_look(ramps(), blob(1, 15), 1.0)
    assert cut_NCHW[0, 0].min() >= 0.0
    assert torch.allclose(cut_NCHW.mean(dim=(0, 2, 3)), torch.tensor([0.2, 0.8]), atol=0.01)


def test_a_map_that_is_the_same_everywhere_gives_the_picture_back():
    images_NCHW = torch.rand(2, 3, 32, 32)
    cut_NCHW = closer_look(images_NCHW, torch.ones(2, 4, 8, 8), 4.0)
    assert torch.allclose(cut_NCHW, images_NCHW, atol=1e-5)


def test_no_pictures_no_squares():
    assert closer_look(torch.zeros(0, 3, 32, 32), torch.zeros(0, 4, 8, 8), 1.5).shape[0] == 0


def test_a_pictures_vector_is_the_mean_of_both_looks_outside_training():
    settings = ModelSettings(backbone="fieldmark_nano", closer=1.5, mirrored=True)
    model = build_classifier(settings, 3, 32, 1)
    plain = build_classifier(settings.model_copy(update={"closer": 0.0}), 3, 32, 1)
    images_NCHW = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        nearer_NCHW = closer_look(images_NCHW, plain.map(images_NCHW), 1.5)
        expected_ND = (plain.embed(images_NCHW) + plain.embed(nearer_NCHW)) / 2
        assert torch.allclose(model.embed(images_NCHW), expected_ND, atol=1e-6)
        model.train()
        plain.train()
        assert torch.equal(model.embed(images_NCHW), plain.embed(images_NCHW))


def test_the_middle_is_cut_and_averaged_as_well():
    assert middle_look(ramps(), 0.5)[0, 0].min() == pytest.approx(0.25, abs=0.01)
    settings = ModelSettings(backbone="fieldmark_nano", middle=0.5, closer=1.5)
    model = build_classifier(settings, 3, 32, 1)
    plain = build_classifier(settings.model_copy(update={"middle": 0.0, "closer": 0.0}), 3, 32, 1)
    images_NCHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        nearer_NCHW = closer_look(images_NCHW, plain.map(images_NCHW), 1.5)
        looks = (images_NCHW, middle_look(images_NCHW, 0.5), nearer_NCHW)
        expected_ND = sum(plain.embed(look_NCHW) for look_NCHW in looks) / 3
        assert torch.allclose(model.embed(images_NCHW), expected_ND, atol=1e-6)


def test_a_recipe_says_how_much_of_a_picture_the_square_keeps():
    text = "[model]\nbackbone = 'fieldmark_nano'\ncrop = {}\n"
    crops = [make_learner(parse_recipe(text.format(c)), 3).model.input.crop for c in (0, 0.5)]
    assert crops == [1.0, 0.5]


@pytest.mark.parametrize("crop", [0.2, 1e-9, 5e-324])
def test_a_square_keeps_a_quarter_of_the_short_side_at_least(crop):
    """A coordinator writes the recipe; a site resizes the short side to ``image_size / crop``."""
    with pytest.raises(ConfigurationError, match=r"model\.crop.*at least 0\.25"):
        parse_recipe(f"[model]\nbackbone = 'fieldmark_nano'\ncrop = {crop!r}\n")


def test_no_picture_changes_anothers_closer_look():
    model = build_classifier(ModelSettings(backbone="fieldmark_nano", closer=1.5), 3, 32, 1)
    images_NCHW = torch.randn(4, 3, 32, 32)
    others_NCHW = torch.cat([images_NCHW[:1], torch.randn(3, 3, 32, 32)])
    with torch.no_grad():
        own, beside = model.embed(images_NCHW)[0], model.embed(others_NCHW)[0]
    assert torch.allclose(own, beside, atol=1e-6)


def test_cached_features_of_one_look_are_not_those_of_two():
    def digest(closer):
        text = f"[model]\nbackbone = 'fieldmark_nano'\ntrain = 'head'\ncloser = {closer}\n"
        return frozen_digest(make_learner(parse_recipe(text), 3).model)

    assert len({digest(0.0), digest(1.5), digest(1.8)}) == 3


def test_the_look_at_scoring_alone_is_no_setting_any_more():
    with pytest.raises(
        ConfigurationError, match=r"'zoom' = 0.7 is no setting any more.*model\.closer"
    ):
        parse_recipe("[evaluate]\nzoom = 0.7\n")
    assert parse_recipe("[evaluate]\nzoom = 0.0\n") == parse_recipe("")
