import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fgvc_core.models.class_statistics import class_statistics
from fieldmark.simulations.bench import NAMES as BENCHES
from fieldmark.simulations.bench import unknown
from fieldmark.simulations.bench.unknown import (
    NAMES,
    known_classes,
    mahalanobis,
    neighbors,
    trained,
    with_head,
)


def clouds(rng, count, classes=8, dim=12):
    """Features around one center a class, and labels."""
    centers_KD = np.random.default_rng(0).normal(0, 2, (classes, dim))
    labels_N = rng.integers(0, classes, count)
    return centers_KD[labels_N] + rng.normal(0, 0.5, (count, dim)), labels_N


@pytest.mark.parametrize("head", ["closed form", "regression"])
def test_every_score_notices_clouds_that_no_head_has_learned(head):
    rng = np.random.default_rng(1)
    found = with_head(head, clouds(rng, 300), clouds(rng, 200), draws=2)
    assert set(found) == set(NAMES)
    for name in ("mahalanobis", "neighbors"):
        assert min(found[name]) > 0.95
    assert min(found["probability"]) > 0.6
    assert all(len(areas) == 2 for areas in found.values())


def test_the_held_out_classes_are_a_quarter_others_in_each_draw_and_never_learned():
    draws = [known_classes(12, draw) for draw in range(3)]
    assert [len(known_K) for known_K in draws] == [9, 9, 9]
    assert len({tuple(known_K) for known_K in draws}) == 3
    assert np.array_equal(draws[0], known_classes(12, 0))


def test_distances_are_those_of_the_definition():
    rng = np.random.default_rng(2)
    features_ND, labels_N = clouds(rng, 200, classes=3, dim=4)
    found = class_statistics(features_ND.astype(np.float32), labels_N, 3, True)
    within_DD = found.within_DD()
    shrunken_DD = 0.6 * within_DD + 0.4 * np.trace(within_DD) / 4 * np.eye(4)
    away_D = features_ND[0] - found.means_KD
    expected = (away_D @ np.linalg.inv(shrunken_DD) * away_D).sum(axis=1).min()
    assert mahalanobis(features_ND[:1], found)[0] == pytest.approx(expected)
    alike = np.sort((features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)) @ (
        features_ND[0] / np.linalg.norm(features_ND[0])))  # fmt: skip
    assert neighbors(features_ND[:1], features_ND)[0] == pytest.approx(alike[-10])


def test_a_network_is_trained_without_the_held_out_classes_and_scored(monkeypatch, tmp_path):
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path))
    small = ["data.image_size=16", "data.fieldmarks_train=48", "data.fieldmarks_test=36"]
    told = []
    found = trained(told.append, draws=1, passes=1, sets=small)
    assert all(0 <= area <= 1 for (area,) in found.values())
    assert told[0].startswith("fieldmarks, trained, draw 0: top-1 0.")


def test_sets_that_are_not_here_are_skipped_and_said_to_be(monkeypatch, tmp_path):
    assert "unknown" in BENCHES
    rng = np.random.default_rng(3)
    monkeypatch.setenv("FIELDMARK_DATA", str(tmp_path))
    monkeypatch.setattr(unknown, "trained", lambda say, sets: {name: [0.75, 0.5] for name in NAMES})
    monkeypatch.setattr(unknown, "frozen_features", lambda *_: (clouds(rng, 120), clouds(rng, 90)))
    figures = unknown.bench_unknown()
    assert "FIELDMARK_DATA" in figures["cub50, skipped"]["how"]
    assert figures["ham10000, skipped"]["value"] is None
    assert figures["fieldmarks, trained without smoothing, energy"]["value"] == 0.625
    assert figures["fieldmarks, regression, mahalanobis"]["ratio"] > 0.9
    scores = np.array([3.0, 2.0, 1.0])
    assert roc_auc_score([1, 0, 0], scores) == unknown.auroc(scores[:1], scores[1:])
