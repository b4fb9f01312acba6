import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from tests_heads import features, head_learner

from fgvc_core.audit.membership import (
    clopper_pearson,
    confidences,
    infer_membership,
    mean_by_unit,
)
from fgvc_core.training.examples import FeatureExamples
from fgvc_core.training.loop import Stretch


def infer(scores, included, delta=0.0, error=0.05):
    return infer_membership(
        np.asarray(scores, float), np.asarray(included, bool), delta, error,
        np.random.default_rng(0),
    )  # fmt: skip


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_clopper_and_pearsons(counted):
    hits, trials = counted
    exact = binomtest(hits, trials).proportion_ci(0.9, method="exact")
    assert clopper_pearson(hits, trials, 0.05) == pytest.approx((exact.low, exact.high))


def test_who_is_told_apart_is_told_apart():
    found = infer([1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 1, 1])
    assert (found.members, found.others, found.auc) == (3, 3, 1.0)
    assert found.found == {0.01: 1.0, 0.1: 1.0}
    assert infer([1, 2, 3, 4], [1, 1, 0, 0]).auc == 0.0
    assert infer([7, 7, 7, 7], [1, 0, 1, 0]).auc == 0.5


def test_found_at_few_false_alarms_counts_what_lies_above_the_others():
    # 100 others at 0..99; members at 98.5, 89.5, 50: above all but 1, all but 10, too few.
    found = infer([*range(100), 98.5, 89.5, 50], [*[0] * 100, 1, 1, 1]).found
    assert found == {0.01: pytest.approx(1 / 3), 0.1: pytest.approx(2 / 3)}


@pytest.mark.parametrize("included", [[1, 1, 1], [0, 0, 0]])
def test_with_one_side_empty_nothing_is_said(included):
    found = infer([1, 2, 3], included)
    assert (found.auc, found.found, found.epsilon) == (None, {}, 0.0)
    assert infer([1, 2], [1, 0]).epsilon == 0.0


def test_epsilon_from_rates_stays_below_randomised_responses_and_comes_near():
    generator = np.random.default_rng(1)
    bounds = []
    for _ in range(100):
        coins = generator.random(600) < 0.5
        honest = generator.random(600) < math.exp(1) / (1 + math.exp(1))
        bounds.append(infer(np.where(honest, coins, ~coins), coins).epsilon)
    assert np.mean(np.array(bounds) > 1) <= 0.05
    assert np.median(bounds) > 0.4
    coins = generator.random(40_000) < 0.5
    assert infer(coins, coins).epsilon > 7


def test_a_model_that_learnt_its_pictures_by_heart_gives_its_members_away():
    learner = head_learner("linear", "train.lr=2.0", "train.epochs=120", "train.optimizer=sgd")
    generator = np.random.default_rng(2)
    everyone = features(generator, 160, signal=0.0)
    included = generator.random(160) < 0.5
    members = FeatureExamples(everyone.features_ND[included], everyone.labels_N.numpy()[included])
    before = confidences(learner, everyone)
    learner.train_round(members, Stretch(1, 1), "site")
    scores = confidences(learner, everyone) - before
    found = infer(scores, included, 1e-5)
    assert found.auc > 0.95
    assert found.found[0.1] > 0.8


def test_confidence_is_the_log_odds_of_a_pictures_own_label_and_a_broken_model_has_none():
    learner = head_learner("linear")
    pictures = features(np.random.default_rng(3), 30)
    assert confidences(learner, pictures) == pytest.approx(np.full(30, -math.log(11)), abs=1e-6)
    learner.model.head.bias.data.fill_(float("nan"))
    assert (confidences(learner, pictures) == 0).all()


def test_a_units_value_is_its_pictures_mean():
    assert mean_by_unit(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1])).tolist() == [2.0, 5.0]
