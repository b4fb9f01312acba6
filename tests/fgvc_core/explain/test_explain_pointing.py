"""The pointing game counts what it says it counts, and its controls are controls."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.data.cache import cache_folder
from fgvc_core.data.catalogue import load_table
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.data.transforms import placement, square
from fgvc_core.errors import DataError
from fgvc_core.explain import pointing
from fgvc_core.explain.distinguishing import distinguishing
from fgvc_core.explain.pointing import (
    Game,
    box_mask,
    centre_map,
    energy_in_box,
    play,
    points_at,
    rank_correlation,
    seen_box,
    seen_parts,
)
from fgvc_core.models.weights import InputSpec

from .coloured import SIZE, coloured, two_patches

SMALL = DataSettings(image_size=32, fieldmarks_train=24, fieldmarks_test=12)


def one_hot(x, y, size=SIZE):
    map_HW = np.zeros((size, size), dtype=np.float32)
    map_HW[y, x] = 1
    return map_HW


def test_a_hit_is_a_maximum_within_the_tolerance_of_a_visible_part():
    parts = np.array([[10.5, 20.5, 1], [14.5, 20.5, 1], [10.5, 20.5, 0]])
    assert points_at(one_hot(10, 20), parts, 0.05).tolist() == [True, False, False]
    assert points_at(one_hot(10, 20), parts, 4 / SIZE).tolist() == [True, True, False]
    assert points_at(one_hot(15, 20), parts, 0).tolist() == [False, False, False]


def test_an_empty_map_points_at_nothing_and_a_patch_at_its_middle():
    parts = np.array([[0.5, 0.5, 1.0]])
    assert not points_at(np.zeros((8, 8), np.float32), parts, 0.2).any()
    flat = np.zeros((8, 8), np.float32)
    flat[2:5, 2:5] = 1
    assert points_at(flat, np.array([[3.5, 3.5, 1.0]]), 0.0).all()


def test_energy_is_the_share_inside_the_box():
    map_HW = one_hot(3, 3, 8) + one_hot(6, 6, 8)
    assert energy_in_box(map_HW, np.array([0.0, 0.0, 5.0, 5.0])) == pytest.approx(0.5)
    assert energy_in_box(map_HW, np.array([0.0, 0.0, 3.5, 8.0])) == pytest.approx(0.25)
    assert energy_in_box(np.zeros((8, 8), np.float32), np.array([0.0, 0, 8, 8])) == 0


@given(
    height=st.integers(40, 300), width=st.integers(40, 300), crop=st.sampled_from([1.0, 0.875]),
    x=st.floats(0.05, 0.95), y=st.floats(0.05, 0.95),
)  # fmt: skip
def test_a_part_is_where_its_pixels_are_after_resizing_and_cropping(height, width, crop, x, y):
    spec = InputSpec(64, crop=crop)
    picture_HWC = np.zeros((height, width, 3), dtype=np.uint8)
    row, column = int(y * height), int(x * width)
    # Large enough to survive the shrinking.
    reach = max(height, width) // 24 + 1
    low_y, low_x = max(row - reach, 0), max(column - reach, 0)
    picture_HWC[low_y : row + reach + 1, low_x : column + reach + 1] = 255
    centre_x = (low_x + min(column + reach + 1, width)) / 2
    centre_y = (low_y + min(row + reach + 1, height)) / 2
    part = np.array([[centre_x / width, centre_y / height, 1]], dtype=np.float32)
    seen_x, seen_y, visible = seen_parts(part, height, width, spec)[0]
    bright_HW = square(picture_HWC, 64, crop)[:, :, 0].astype(np.float64)
    target, _ = placement(height, width, 64, crop)
    edge = 2 + reach * max(target) / max(height, width)
    if visible and edge < seen_x < 64 - edge and edge < seen_y < 64 - edge:
        rows, columns = np.indices((64, 64))
        assert (bright_HW * (columns + 0.5)).sum() / bright_HW.sum() == pytest.approx(seen_x, abs=1)
        assert (bright_HW * (rows + 0.5)).sum() / bright_HW.sum() == pytest.approx(seen_y, abs=1)


def test_a_part_outside_the_crop_is_not_visible_and_a_box_is_clipped():
    spec = InputSpec(64)
    parts = np.array([[0.02, 0.5, 1], [0.5, 0.5, 1]], dtype=np.float32)
    assert seen_parts(parts, 100, 300, spec)[:, 2].tolist() == [0, 1]
    box = seen_box(np.array([0.0, 0.25, 1.0, 0.5], np.float32), 100, 300, spec)
    assert box.tolist() == [0, 16, 64, 48]
    assert box_mask(box, 64).sum() == pytest.approx(64 * 32)
    assert seen_box(np.array([0.0, 0.0, 0.1, 1.0], np.float32), 100, 300, spec) is None
    assert seen_box(np.full(4, np.nan, np.float32), 100, 300, spec) is None


def test_look_alikes_are_told_apart_by_the_parts_that_the_field_guide_says():
    table = load_table(SMALL, cache_folder())
    tells = distinguishing(table)
    at = {name: k for k, name in enumerate(table.class_names)}

    def parts(one, two):
        found = tells[at[one], at[two]]
        return {name for name, told in zip(table.part_names, found, strict=True) if told}

    assert parts("Sooty-capped thrummer", "Fox-capped thrummer") == {"crown"}
    assert parts("Sooty-capped thrummer", "Ember-throated thrummer") == {"throat"}
    assert parts("Russet lancet", "Ringed lancet") == {"eye"}
    assert parts("Bibbed barwing", "Fox-capped thrummer") == {"crown", "throat", "wing", "tail tip"}
    assert np.array_equal(tells, tells.transpose(1, 0, 2))
    assert parts("Russet lancet", "Russet lancet") == {
        "crown", "eye", "bill", "throat", "wing", "tail tip"}  # fmt: skip


def test_a_table_without_parts_or_attributes_cannot_be_played_on():
    table = load_table(SMALL, cache_folder()).where("test")
    trained = SimpleNamespace(class_names=table.class_names)
    with pytest.raises(DataError, match="part locations"):
        play(trained, replace(table, attributes_KA=None), Game())
    with pytest.raises(DataError, match="classes are not"):
        play(SimpleNamespace(class_names=("a",)), table, Game())


class _TwoPatches:
    """The same picture for every row."""

    def picture(self, row, size=None):
        return two_patches()

    def content_key(self, row):
        return b""


def two_classes(count=4):
    """Pictures of two patches; class 0's part is the red one, class 1's the blue one."""
    parts = np.array([[12 / SIZE, 12 / SIZE, 1], [50 / SIZE, 48 / SIZE, 1]], dtype=np.float32)
    names = tuple(f"p{n}" for n in range(count))
    return ExampleTable(
        _TwoPatches(), np.arange(count), names, np.arange(count) % 2, ("test",) * count, names,
        ("red", "blue"), attributes_KA=np.array([[1, 0, 1, 0], [1, 0, 0, 1]], dtype=np.float32),
        attribute_names=("crown: plain", "crown: black", "throat: plain", "throat: red"),
        parts_NP3=np.stack([parts if n % 2 else parts[::-1] for n in range(count)]),
        part_names=("crown", "throat"),
        boxes_N4=np.tile(np.array([0, 0, 0.5, 0.5], np.float32), (count, 1)),
    )  # fmt: skip


class _Coloured:
    """A trained model of two colours, as the game wants it."""

    class_names = ("red", "blue")
    model = coloured()

    def view(self, picture_HWC):
        return picture_HWC

    def logits(self, views_NHWC):
        import torch

        images = torch.from_numpy(views_NHWC).permute(0, 3, 1, 2)
        with torch.no_grad():
            return self.model(self.model.normalise(images))


def test_a_model_that_looks_at_the_part_that_tells_wins_against_both_controls(monkeypatch):
    # The control looks at the other colour: its weights are swapped, so it never hits.
    def swapped(trained, number):
        import torch

        other = coloured()
        with torch.no_grad():
            other.head.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        return other

    pytest.importorskip("pytorch_grad_cam", reason="needs the 'explain' extra")
    monkeypatch.setattr(pointing, "randomised", swapped)
    found = play(_Coloured(), two_classes(), Game(method="hirescam", draws=1))
    assert found["trained"]["hit_rate"] == 1
    assert found["random_weights"]["hit_rate"] == 0
    assert found["centre"]["hit_rate"] == 0
    assert found["ratio_centre"] is None
    assert found["trained"]["energy_in_box"] == pytest.approx(0.5, abs=0.05)
    assert found["rank_correlation"] < 0.5
    assert not found["unchanged_by_randomising"]


def test_maps_that_do_not_change_with_the_weights_are_found_out(monkeypatch):
    pytest.importorskip("pytorch_grad_cam", reason="needs the 'explain' extra")
    monkeypatch.setattr(pointing, "randomised", lambda trained, number: coloured())
    found = play(_Coloured(), two_classes(2), Game(draws=2))
    assert found["rank_correlation"] == pytest.approx(1)
    assert found["unchanged_by_randomising"]
    assert found["ratio_random"] == pytest.approx(1)


def test_rank_correlation_is_spearmans_and_the_centre_is_in_the_middle():
    from scipy.stats import spearmanr

    one, two = np.random.default_rng(0).random((2, 9, 9)).astype(np.float32)
    assert rank_correlation(one, two) == pytest.approx(spearmanr(one.ravel(), two.ravel())[0])
    assert rank_correlation(one, np.ones_like(one)) == 0
    assert points_at(centre_map(64), np.array([[32.0, 32.0, 1.0]]), 0.0).all()


@pytest.mark.slow
def test_the_trained_demo_points_twice_as_often_as_the_centre_and_random_weights(tmp_path):
    from fgvc_core.experiment import make_learner, make_table
    from fgvc_core.inference.trained import TrainedModel
    from fgvc_core.recipe import load_recipe
    from fgvc_core.training.loop import Stretch

    root = Path(__file__).parents[3]
    recipe = load_recipe(root / "simulations/recipes/demo.toml", ["data.fieldmarks_test=240"])
    table = make_table(recipe, tmp_path)
    learner = make_learner(recipe, table.num_classes)
    examples = learner.examples(table.where("train"), tmp_path)
    for number in range(1, 17):
        learner.train_round(examples, Stretch(number, 16), "pooled")
    learner.model.eval()
    trained = TrainedModel(tmp_path, recipe, table.class_names, learner, {})
    found = play(trained, table.where("test"), Game())
    assert found["ratio_centre"] >= 2
    assert found["ratio_random"] >= 2
    assert found["rank_correlation"] < 0.5
