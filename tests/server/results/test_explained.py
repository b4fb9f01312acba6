import json

import numpy as np
import pytest
from PIL import Image

from fgvc_core.data.cache import cache_folder
from fgvc_core.data.catalogue import may_be_shown
from fgvc_core.data.transforms import square
from fgvc_core.experiment import make_learner, make_table
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.examples import Evaluation
from fieldmark.server.results.evaluation import confused_pairs
from fieldmark.server.results.explained import SIDE, explain_pairs, overlay


@pytest.fixture
def scored(tiny):
    """An untrained model's mistakes on the embedded test split."""
    table = make_table(tiny, cache_folder()).where("test")
    learner = make_learner(tiny, table.num_classes)
    predicted_N = (table.labels_N + 1) % table.num_classes
    counts = np.zeros((table.num_classes, table.num_classes), dtype=np.int64)
    np.add.at(counts, (table.labels_N, predicted_N), 1)
    return table, learner, Evaluation(counts, 0.0), predicted_N


def square_of(learner, table, position):
    """The picture as the model sees it."""
    spec = learner.model.input
    return square(table.picture(position, spec.size), spec.size, spec.crop, spec.interpolation)


def enlarged(picture_HWC):
    """As it is written."""
    drawn = Image.fromarray(picture_HWC).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(drawn)


def test_each_confused_pair_is_shown_where_the_model_saw_either_class(scored, tmp_path):
    pytest.importorskip("pytorch_grad_cam", reason="needs the 'explain' extra")
    from fgvc_core.explain.class_maps import ClassMaps

    table, learner, counts, predicted_N = scored
    pairs = confused_pairs(table, counts, predicted_N, tmp_path / "pictures")
    assert explain_pairs(learner.model, table, pairs[:2], tmp_path / "pictures") is None
    for pair in pairs[:2]:
        pictures = [np.asarray(Image.open(tmp_path / name)) for name in pair["explained"]]
        assert [p.shape for p in pictures] == [(SIDE, SIDE, 3)] * 3
        wanted, against = pair["predicted"], pair["true"]
        view_HWC = square_of(learner, table, int(pair["mistaken"][0]))
        maps = ClassMaps(learner.model)
        for drawn, (one, other) in zip(
            pictures[1:], ((wanted, against), (against, wanted)), strict=True
        ):
            (map_HW,) = maps(view_HWC[None], [one], [other])
            assert np.array_equal(drawn, enlarged(overlay(view_HWC, map_HW)))
        assert np.array_equal(pictures[0], enlarged(view_HWC))
        position = int(pair["mistaken"][0])
        assert (table.labels_N[position], predicted_N[position]) == (
            pair["true"],
            pair["predicted"],
        )
    assert "explained" not in pairs[2]
    json.dumps(pairs)


def test_whatever_goes_wrong_with_a_map_the_results_are_not_lost(scored, tmp_path, monkeypatch):
    pytest.importorskip("pytorch_grad_cam", reason="needs the 'explain' extra")
    table, learner, counts, predicted_N = scored
    pairs = confused_pairs(table, counts, predicted_N, tmp_path / "pictures")

    def fails(*given, **named):
        raise RuntimeError("no gradient reached the layer")

    monkeypatch.setattr("fgvc_core.explain.class_maps.ClassMaps.__call__", fails)
    told = explain_pairs(learner.model, table, pairs, tmp_path / "pictures")
    assert told == "RuntimeError: no gradient reached the layer"
    assert not any("explained" in pair for pair in pairs)


def test_a_pair_that_may_not_be_shown_leaves_no_picture(scored, tmp_path):
    table, _, counts, predicted_N = scored
    pairs = confused_pairs(table, counts, predicted_N, None)
    assert pairs
    assert all(pair[f"pictures_{k}"] == [] for pair in pairs for k in ("true", "mistaken"))
    assert not (tmp_path / "pictures").exists()


def test_where_there_is_nothing_the_picture_is_grey_and_where_there_is_all_it_is_red():
    view_HWC = np.full((4, 4, 3), (0, 90, 210), dtype=np.uint8)
    map_HW = np.zeros((4, 4), dtype=np.float32)
    map_HW[0] = 1.0
    drawn_HWC = overlay(view_HWC, map_HW)
    assert (drawn_HWC[1:] == 100).all()
    red, green, blue = drawn_HWC[0, 0].tolist()
    assert red > 100 > blue > green


@pytest.mark.parametrize(
    ("sets", "shown"),
    [
        (["data.name=cub"], True),
        (["data.name=folder"], False),
        (["data.name=manifest"], False),
        (["data.name=folder", "data.public=true"], True),
        (["data.name=fieldmarks", "data.public=false"], False),
    ],
)
def test_pictures_of_a_folder_are_shown_only_where_somebody_says_that_they_are_public(sets, shown):
    assert may_be_shown(parse_recipe("", sets).data) is shown
