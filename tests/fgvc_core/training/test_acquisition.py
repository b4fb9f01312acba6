import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvc_core.training.acquisition import METHODS, entropy, farthest_first, margin, pick

NONE = np.zeros((0, 2), dtype=np.float32)


def logits(*shares):
    return np.log(np.array(shares, dtype=np.float32))


def test_entropy_and_margin_are_what_their_formulas_give():
    logits_NK = logits([0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [0.9, 0.05, 0.05])
    by_hand = [1.5 * math.log(2), math.log(3), -0.9 * math.log(0.9) - 0.1 * math.log(0.05)]
    assert entropy(logits_NK) == pytest.approx(by_hand, abs=1e-6)
    assert margin(logits_NK) == pytest.approx([0.25, 0.0, 0.85], abs=1e-6)


def test_huge_logits_are_no_trouble_and_a_single_class_is_never_unsure():
    assert entropy(np.array([[1e4, 0.0]], dtype=np.float32)) == pytest.approx([0.0])
    assert margin(np.array([[3.0]], dtype=np.float32)).tolist() == [1.0]


def test_the_least_sure_come_first():
    logits_NK = logits([0.9, 0.1], [0.51, 0.49], [0.6, 0.4])
    features_ND = np.zeros((3, 2), dtype=np.float32)
    for method in ("entropy", "margin"):
        chosen, scores = pick(method, logits_NK, features_ND, NONE, 2, 0)
        assert chosen.tolist() == [1, 2]
        assert len(scores) == 2


points = st.lists(st.tuples(*[st.integers(-20, 20)] * 2), min_size=4, max_size=9)


@settings(max_examples=60, deadline=None)
@given(points, st.integers(1, 3))
def test_farthest_first_needs_at_most_twice_the_best_radius(found, count):
    features_ND = np.array(found, dtype=np.float32)

    def radius(centres):
        apart = np.linalg.norm(features_ND[:, None] - features_ND[list(centres)][None], axis=2)
        return apart.min(axis=1).max()

    chosen, _ = farthest_first(features_ND, NONE, count)
    best = min(map(radius, itertools.combinations(range(len(found)), count)))
    assert radius(chosen) <= 2 * best + 1e-9


def test_what_is_covered_is_not_picked_while_something_is_farther():
    features_ND = np.array([[0, 0], [1, 0], [9, 0], [0, 5]], dtype=np.float32)
    covered_MD = np.array([[0, 0]], dtype=np.float32)
    chosen, distances = farthest_first(features_ND, covered_MD, 3)
    assert chosen.tolist() == [2, 3, 1]
    assert distances.tolist() == [9.0, 5.0, 1.0]


def test_without_labelled_pictures_the_middle_is_picked_first():
    features_ND = np.array([[0, 0], [4, 0], [10, 0]], dtype=np.float32)
    chosen, distances = farthest_first(features_ND, NONE, 2)
    assert chosen.tolist() == [1, 2]
    assert math.isinf(distances[0])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(METHODS), st.integers(0, 12), st.integers(0, 14), st.integers(0, 99))
def test_picks_are_distinct_and_as_many_as_there_are(method, total, count, seed):
    generator = np.random.default_rng(seed)
    # Few distinct values: ties and equal pictures are the rule.
    features_ND = generator.integers(0, 2, (total, 2)).astype(np.float32)
    logits_NK = generator.integers(0, 2, (total, 3)).astype(np.float32)
    chosen, scores = pick(method, logits_NK, features_ND, NONE, count, seed)
    assert len(chosen) == len(scores) == len(set(chosen.tolist())) == min(count, total)
    again, _ = pick(method, logits_NK, features_ND, NONE, count, seed)
    assert np.array_equal(chosen, again)
