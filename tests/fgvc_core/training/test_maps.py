import copy

import numpy as np
import pytest
import torch

from fgvc_core.data.fieldmarks import build_table
from fgvc_core.data.settings import AugmentSettings, DataSettings
from fgvc_core.data.transforms import Augment
from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.trainable import prefix_digest
from fgvc_core.privacy.accountant import PrivacyEvent
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.recipe import parse_recipe
from fgvc_core.training import private
from fgvc_core.training.compatibility import validate_private
from fgvc_core.training.examples import PictureExamples
from fgvc_core.training.learner import Learner
from fgvc_core.training.loop import Stretch
from fgvc_core.training.map_views import count_views, views_of, why_no_maps
from fgvc_core.training.maps import MapExamples
from fgvc_core.training.private import PrivateTraining
from fgvc_core.training.settings import TrainSettings

STILL = AugmentSettings(rotation=0, zoom=0, color=0, flip=False)
FLIPS = AugmentSettings(rotation=0, zoom=0, color=0, flip=True, flip_vertical=True)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    settings = DataSettings(image_size=32, fieldmarks_train=40, fieldmarks_test=12)
    return build_table(settings, tmp_path_factory.mktemp("pictures")).where("train")


def learner_of(
    backbone="test_efficientnet", stage="blocks.3", augment=FLIPS, maps="float32", size=32, **of
):
    model = {"backbone": backbone, "attention": "none", "train": stage, **of}
    return Learner(
        ModelSettings(**model),
        LossSettings(),
        augment,
        TrainSettings(epochs=2, batch_size=8, lr=0.05, optimizer="sgd"),
        num_classes=12,
        image_size=size,
        seed=3,
        maps=maps,
    )


def update(learner, examples):
    before = learner.tensors()
    learner.train_round(examples, Stretch(1, 4), "a site")
    after = learner.tensors()
    learner.load(before)
    return {name: after[name] - before[name] for name in before}


def flat(update):
    return np.concatenate([update[name].ravel() for name in sorted(update)])


@pytest.mark.parametrize(
    ("backbone", "stage", "norm"),
    [
        ("test_efficientnet", "blocks.3", "batch"),
        ("test_efficientnet", "blocks.4", "frozen"),
        ("fieldmark_nano", "stage4", "batch"),
        ("test_convnext", "stages.2", "batch"),
    ],
)
@pytest.mark.parametrize("augment", [STILL, FLIPS])
def test_cached_maps_give_the_update_of_the_whole_network(
    table, tmp_path, backbone, stage, norm, augment
):
    norm = {} if backbone != "test_efficientnet" else {"norm": norm}
    cut = learner_of(backbone, stage, augment, **norm)
    whole = learner_of(backbone, stage, augment, maps=None, **norm)
    examples = cut.examples(table, tmp_path)
    assert isinstance(examples, MapExamples)
    expected = update(whole, whole.examples(table, tmp_path))
    found = update(cut, examples)
    for name, change in expected.items():
        np.testing.assert_allclose(found[name], change, rtol=1e-3, atol=1e-5)
    trained = [change for name, change in expected.items() if "running" not in name]
    assert max(np.abs(change).max() for change in trained) > 5e-3


def test_half_precision_changes_an_update_by_less_than_one_in_a_hundred(table, tmp_path):
    whole, half = learner_of(maps=None), learner_of(maps="float16")
    expected = update(whole, whole.examples(table, tmp_path))
    found = flat(update(half, half.examples(table, tmp_path)))
    assert 0 < np.linalg.norm(found - flat(expected)) < 0.01 * np.linalg.norm(flat(expected))


@pytest.mark.parametrize("mirrored", [False, True])
def test_scores_are_those_of_the_whole_network(table, tmp_path, mirrored):
    whole, cut = (learner_of(maps=maps, mirrored=mirrored) for maps in (None, "float32"))
    at = torch.arange(len(table))
    expected, found = (
        one.examples(table, tmp_path).logits(one.model.eval(), at, None) for one in (whole, cut)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_prefix_runs_once_a_picture_and_view_and_never_in_a_round(table, tmp_path, monkeypatch):
    learner = learner_of()
    seen, run = [], learner.prefix.map
    monkeypatch.setattr(
        learner.prefix, "map", lambda images: seen.append(len(images)) or run(images)
    )
    examples = learner.examples(table, tmp_path)
    learner.train_round(examples, Stretch(1, 1), "a site")
    assert sum(seen) == 4 * 64  # Two batches of 32 in each of four views.
    seen.clear()
    learner.train_round(examples, Stretch(1, 1), "a site")
    learner.train_round(learner.examples(table, tmp_path), Stretch(1, 1), "a site")
    learner.evaluate(examples, 16)
    assert seen == []


def test_maps_of_other_weights_stages_and_sizes_are_not_taken(table, tmp_path):
    learners = [
        learner_of(),
        learner_of(stage="blocks.4"),
        learner_of(crop=0.5),
        learner_of("test_resnet", "layer3"),
    ]
    learners.append(copy.deepcopy(learners[0]))
    digests = {learner._prefix_digest for learner in learners}
    assert len(digests) == 4
    other = learner_of()
    with torch.no_grad():
        other.model.backbone.model.conv_stem.weight.add_(0.1)
    assert prefix_digest(other.model, "blocks.3") not in digests


def test_what_trains_changes_no_key(table, tmp_path):
    learner = learner_of(norm="batch")
    learner.train_round(learner.examples(table, tmp_path), Stretch(1, 1), "a site")
    assert prefix_digest(learner.model, "blocks.3") == learner._prefix_digest


VARIED = AugmentSettings(cached_views=3)


def test_other_views_are_drawn_once_and_follow_from_the_picture_alone(table, tmp_path):
    learner = learner_of(augment=VARIED)
    examples = learner.examples(table, tmp_path)
    assert [view.number for view in views_of(VARIED)] == [1, 2, 3]
    at = np.arange(len(table))
    shown = [examples.maps.get(at, view) for view in views_of(VARIED)]
    assert not torch.allclose(shown[0], shown[1])
    # Alone, in another order, and in another process' store: the same to the bit.
    few = learner_of(augment=VARIED).examples(table.take([7, 3]), tmp_path / "other")
    assert torch.equal(few.maps.get(np.arange(2), views_of(VARIED)[1]), shown[1][[7, 3]])
    drawn = {
        float(examples._drawn(learner.model, torch.tensor([5]), generator)[0].sum())
        for generator in map(torch.Generator().manual_seed, range(20))
    }
    assert len(drawn) == 3


def test_flips_are_drawn_as_augmentation_draws_them(table):
    images_NCHW = torch.from_numpy(np.stack([table.picture(i, 32) for i in range(30)]))
    images_NCHW = images_NCHW.permute(0, 3, 1, 2).contiguous()
    vary = Augment(FLIPS)
    shown = vary(images_NCHW, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    across_N, down_N = vary.flips(30, generator)
    expected = torch.stack(
        [
            image.flip([axis for axis, on in ((-1, across), (-2, down)) if on])
            for image, across, down in zip(images_NCHW, across_N, down_N, strict=True)
        ]
    )
    assert torch.equal(shown, expected)
    assert 0 < int(across_N.sum()) < 30
    assert 0 < int(down_N.sum()) < 30
    after = torch.Generator().manual_seed(4)
    vary(images_NCHW, after)
    assert torch.equal(after.get_state(), generator.get_state())


@pytest.mark.parametrize(
    ("model", "augment", "why"),
    [
        ({"train": "all"}, {}, "nothing in front"),
        ({"train": "head"}, {}, "features"),
        ({"train": "stage3"}, {"cached_views": 0}, "cached_views = 0"),
        ({"train": "stage3"}, {"mix": "mixup"}, "mixup"),
        ({"train": "stage3", "closer": 1.5}, {}, "model.closer"),
        ({"train": "stage3", "middle": 0.8}, {}, "model.middle"),
        ({"train": "stage3"}, {}, ""),
    ],
)
def test_settings_that_keep_no_maps_say_why(model, augment, why):
    found = why_no_maps(ModelSettings(**model), AugmentSettings(**augment))
    assert why in found
    assert bool(found) == bool(why)


def test_without_maps_the_whole_network_runs_on_pictures(table, tmp_path):
    learner = learner_of(augment=AugmentSettings(cached_views=0))
    assert learner.prefix is None
    assert isinstance(learner.examples(table, tmp_path), PictureExamples)


def test_views_are_counted_once():
    still, both = STILL, FLIPS
    assert count_views(ModelSettings(train="stage3"), still) == 1
    assert count_views(ModelSettings(train="stage3", mirrored=True), still) == 2
    assert count_views(ModelSettings(train="stage3", mirrored=True), both) == 4
    assert count_views(ModelSettings(train="stage3"), AugmentSettings(cached_views=5)) == 6


def private_settings(engine):
    return PrivacySettings(
        epsilon=8.0, method="gradients", sampling_rate=0.5, steps=3, engine=engine
    )


@pytest.mark.parametrize("engine", ["loop", "batched", "opacus"])
def test_a_private_step_on_maps_is_that_of_the_whole_network(table, tmp_path, monkeypatch, engine):
    monkeypatch.setattr(private, "release", lambda values, grid: values)
    units_N = np.arange(len(table)) // 2
    step = PrivacyEvent("step", 1.0, 1.0, 2)
    moved = []
    for maps in (None, "float32"):
        learner = learner_of("fieldmark_nano", "stage4", STILL, maps)
        settings = validate_private(learner, private_settings(engine))
        assert settings.engine == engine
        before = learner.tensors()
        examples = learner.examples(table, tmp_path)
        training = PrivateTraining(learner, examples, units_N, settings)
        training.run(step, len(table) // 2, Stretch(1, 1))
        moved.append({name: after - before[name] for name, after in learner.tensors().items()})
    for name, change in moved[0].items():
        np.testing.assert_allclose(moved[1][name], change, rtol=1e-3, atol=1e-5)
    assert np.abs(flat(moved[0])).max() > 1e-3


def test_trained_batch_normalisation_behind_a_frozen_prefix_is_still_refused():
    with pytest.raises(PolicyRefusal, match="changes 'backbone"):
        validate_private(learner_of(norm="batch"), private_settings("loop"))
    validate_private(learner_of(norm="frozen"), private_settings("loop"))


def test_a_unit_has_the_same_gradient_whoever_was_cached_with_it(table, tmp_path):
    learner = learner_of("fieldmark_nano", "stage4", FLIPS, "float16")
    many = learner.examples(table, tmp_path / "many")
    few = learner.examples(table.take([9, 30]), tmp_path / "few")
    for view in views_of(FLIPS):
        assert torch.equal(
            many.maps.get(np.array([9, 30]), view), few.maps.get(np.array([0, 1]), view)
        )


def test_a_mirrored_map_stands_for_the_map_of_the_mirror_image(table, tmp_path):
    settings = FLIPS.model_copy(update={"mirror_maps": True})
    assert count_views(ModelSettings(train="stage3"), settings) == 1
    learner = learner_of(augment=settings)
    examples = learner.examples(table, tmp_path)
    positions = torch.arange(20)
    drawn = examples._drawn(learner.model, positions, torch.Generator().manual_seed(2))
    across_N, down_N = Augment(FLIPS).flips(20, torch.Generator().manual_seed(2))
    plain = examples.maps.get(positions.numpy(), views_of(settings)[0])
    for number in range(20):
        axes = [axis for axis, on in ((-1, across_N), (-2, down_N)) if on[number]]
        assert torch.equal(drawn[number], plain[number].flip(axes))


def test_tokens_cannot_be_mirrored():
    settings = FLIPS.model_copy(update={"mirror_maps": True})
    with pytest.raises(ConfigurationError, match="no map of rows and columns"):
        learner_of("test_vit", "blocks.3", settings, size=160)


@pytest.mark.parametrize("sets", [["model.train=all"], ["model.train=stage3"]])
def test_mirrored_maps_that_would_do_nothing_are_refused(sets):
    with pytest.raises(ConfigurationError, match="mirror_maps = true would do nothing"):
        parse_recipe("", ["augment.mirror_maps=true", *sets])
