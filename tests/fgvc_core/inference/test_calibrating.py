"""Fitting of a calibration: what helps on held-out pictures is kept, and nothing else."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from fgvc_core.errors import DataError
from fgvc_core.inference.calibrating import (
    FALSE_REFUSALS,
    FEWEST_ERRORS,
    FEWEST_KNOWN,
    FEWEST_PICTURES,
    calibrate,
    fit_temperature,
    folds_of,
    threshold_of,
)
from fgvc_core.inference.calibration import (
    confidence_of,
    file_digest,
    read_calibration,
    sidecar,
    write_calibration,
)
from fgvc_core.inference.confidence import (
    COLDEST,
    HOTTEST,
    SCORES,
    Confidence,
    default_score,
    known_scores,
)
from fgvc_core.inference.reliability import gaps, reliability

KINDS = ("honest", "always right", "always wrong", "flat", "mixed")


def drawn(rng, kind, factor, classes, spread, count, strangers=False):
    """Logits that are too large by a factor, with labels drawn from the true ones or as said."""
    true_NK = rng.normal(0, spread, (count, classes))
    if strangers:
        return 0.7 * factor * true_NK, np.full(count, -1)
    order_NK = np.argsort(-true_NK, axis=1)
    chance_N1 = rng.random((count, 1))
    labels_N = (softmax(true_NK, axis=1).cumsum(axis=1) < chance_N1).sum(axis=1)
    labels_N = np.minimum(labels_N, classes - 1)
    if kind == "always right":
        labels_N = order_NK[:, 0]
    elif kind == "always wrong":
        labels_N = order_NK[:, 1]
    elif kind == "flat":
        labels_N = np.where(rng.random(count) < 0.8, order_NK[:, 0], order_NK[:, 1])
    elif kind == "mixed":
        return true_NK * np.where(rng.random((count, 1)) < 0.5, factor, 1 / factor), labels_N
    return true_NK * factor, labels_N


def fitted_on(logits_NK, labels_N, **options):
    return calibrate(logits_NK, labels_N, checkpoint="0" * 64, on="made up", **options)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_calibration_finds_the_temperature_and_takes_the_error_away(temperature):
    rng = np.random.default_rng(0)
    logits_NK, labels_N = drawn(rng, "honest", temperature, 6, 2.0, 4000)
    fitted = fitted_on(logits_NK, labels_N)
    assert fitted.temperature == pytest.approx(temperature, rel=0.06)
    assert fitted.held_out.nll_after < fitted.held_out.nll_before
    assert fitted.held_out.ece_after < fitted.held_out.ece_before
    fresh_NK, fresh_N = drawn(rng, "honest", temperature, 6, 2.0, 4000)
    assert reliability(fresh_NK, fresh_N, fitted.temperature).ece < 0.03
    assert reliability(fresh_NK, fresh_N).ece > 0.1
    known_N = confidence_of(fitted).unknown(fresh_NK)
    assert known_N.mean() == pytest.approx(FALSE_REFUSALS, abs=0.02)
    assert fitted.refused == pytest.approx(FALSE_REFUSALS, abs=0.02)


def test_a_model_whose_confidences_hold_already_keeps_them():
    logits_NK, labels_N = drawn(np.random.default_rng(2), "honest", 1.0, 6, 2.0, 1000)
    fitted = fitted_on(logits_NK, labels_N)
    assert fitted.temperature is None
    assert fitted.why_not.startswith("not improved: on held-out folds the log loss goes from")
    assert confidence_of(fitted).temperature is None
    assert fitted.told.startswith("Confidences are uncalibrated: not improved")


def test_a_model_that_is_right_on_all_72_pictures_gets_no_temperature_and_a_sane_threshold():
    rng = np.random.default_rng(5)
    logits_NK, labels_N = drawn(rng, "always right", 0.6, 5, 3.0, 72)
    fitted = fitted_on(logits_NK, labels_N)
    assert fitted.temperature is None
    assert fitted.why_not == (
        f"too few errors to fit a temperature: 0, and {FEWEST_ERRORS} are needed"
    )
    # Three of 72 are below the third smallest share, and none is at 1.
    assert fitted.threshold < 0.9
    assert 1 <= confidence_of(fitted).unknown(logits_NK).sum() <= 3
    strange_NK, _ = drawn(rng, "always right", 0.6, 5, 3.0, 42, strangers=True)
    before_N = Confidence().sure_of_class(strange_NK)
    after_N = confidence_of(fitted).sure_of_class(strange_NK)
    assert not (after_N & ~before_N).any()


@pytest.mark.parametrize("count", [1, FEWEST_KNOWN - 1, FEWEST_PICTURES - 1])
def test_too_few_pictures_fit_no_temperature(count):
    logits_NK, labels_N = drawn(np.random.default_rng(3), "honest", 4.0, 6, 2.0, count)
    fitted = fitted_on(logits_NK, labels_N)
    assert fitted.temperature is None
    assert f"too few pictures to fit a temperature: {count}, and 50 are needed" == fitted.why_not
    assert (fitted.threshold is None) == (count < FEWEST_KNOWN)
    assert fitted.of_use == (count >= FEWEST_KNOWN)


def test_no_picture_is_an_error():
    with pytest.raises(DataError, match="no picture to fit"):
        fitted_on(np.zeros((0, 3)), np.zeros(0, dtype=np.int64))


def test_pictures_of_few_subjects_fit_no_temperature_and_subjects_stay_whole():
    logits_NK, labels_N = drawn(np.random.default_rng(4), "honest", 4.0, 6, 2.0, 400)
    nine = tuple(f"patient {n % 9}" for n in range(400))
    fitted = fitted_on(logits_NK, labels_N, subjects=nine)
    assert fitted.why_not == "too few subjects to fit a temperature: 9, and 10 are needed"
    assert (fitted.examples, fitted.subjects) == (400, 9)
    many = tuple(f"patient {n % 80}" for n in range(400))
    assert fitted_on(logits_NK, labels_N, subjects=many).temperature is not None
    subjects_N = np.random.default_rng(0).integers(0, 37, 200)
    subjects_N = np.unique(subjects_N, return_inverse=True)[1]
    folds = folds_of(subjects_N, 3)
    assert set(folds.tolist()) == {0, 1, 2, 3, 4}
    assert all(len(set(folds[subjects_N == s].tolist())) == 1 for s in range(37))
    assert np.array_equal(folds, folds_of(subjects_N, 3))


def test_a_picture_that_is_there_forty_times_is_not_forty_pieces_of_evidence():
    kept = {"apart": 0, "whole": 0}
    for seed in range(20):
        logits_SK, labels_S = drawn(np.random.default_rng(seed), "honest", 1.0, 4, 2.0, 12)
        logits_NK, labels_N = np.repeat(logits_SK, 40, axis=0), np.repeat(labels_S, 40)
        subjects = tuple(map(str, np.repeat(range(12), 40)))
        kept["apart"] += fitted_on(logits_NK, labels_N).temperature is not None
        kept["whole"] += fitted_on(logits_NK, labels_N, subjects=subjects).temperature is not None
    # These confidences hold already: what is kept is chance.
    assert kept["whole"] <= 1
    assert kept["apart"] >= 3


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.sampled_from(KINDS),
    st.floats(0.25, 5.0),
    st.sampled_from([2, 3, 7, 20]),
    st.floats(0.5, 6.0),
    st.sampled_from([10, 40, 50, 72, 100, 200, 500, 2000]),
    st.sampled_from(SCORES),
)
def test_calibration_never_worsens_the_error_by_more_than_a_hundredth_nor_names_strangers(
    seed, kind, factor, classes, spread, count, score
):
    rng = np.random.default_rng(seed)
    logits_NK, labels_N = drawn(rng, kind, factor, classes, spread, count)
    fitted = fitted_on(logits_NK, labels_N, score=score, seed=seed)
    rule = confidence_of(fitted)
    fresh_NK, fresh_N = drawn(rng, kind, factor, classes, spread, 8000)
    before = reliability(fresh_NK, fresh_N).ece
    after = reliability(fresh_NK, fresh_N, rule.divisor).ece
    assert after <= before + 0.01
    assert COLDEST <= rule.divisor <= HOTTEST
    strange_NK, _ = drawn(rng, kind, factor, classes, spread, 2000, strangers=True)
    named_before, named_after = (
        int(one.sure_of_class(strange_NK).sum()) for one in (Confidence(), rule)
    )
    assert named_after <= named_before
    if count >= FEWEST_KNOWN:
        refused = rule.unknown(fresh_NK).mean()
        # Beta of the k-th smallest of N, five standard deviations out.
        assert refused <= FALSE_REFUSALS + 5 * np.sqrt(FALSE_REFUSALS * 0.95 / count)


@given(st.lists(st.floats(-5, 5), min_size=FEWEST_KNOWN, max_size=400))
def test_a_threshold_refuses_at_most_the_stated_share_of_its_own_pictures(scores):
    scores_N = np.array(scores)
    bar = threshold_of(scores_N)
    assert (scores_N < bar).sum() <= FALSE_REFUSALS * (len(scores_N) + 1)
    assert (scores_N <= bar + 1e-4).any()


def test_the_prior_holds_a_temperature_where_the_likelihood_has_none():
    logits_NK = np.tile([[3.0, 0.0]], (72, 1))
    assert fit_temperature(logits_NK, np.zeros(72, dtype=np.int64)) > COLDEST
    assert fit_temperature(logits_NK, np.ones(72, dtype=np.int64)) <= HOTTEST + 1e-9


def test_gaps_add_up_to_the_calibration_error():
    logits_NK, labels_N = drawn(np.random.default_rng(6), "honest", 2.0, 4, 2.0, 300)
    found_NM = gaps(logits_NK, labels_N, np.full((300, 1), 1.7))
    ece = np.abs(found_NM.sum(axis=0)).sum() / 300
    assert ece == pytest.approx(reliability(logits_NK, labels_N, 1.7).ece)


def test_the_score_depends_on_how_the_model_was_trained():
    assert default_score(frozen=True, label_smoothing=0.0) == "energy"
    assert default_score(frozen=True, label_smoothing=0.1) == "probability"
    assert default_score(frozen=False, label_smoothing=0.1) == "probability"


def test_known_scores_are_the_named_ones():
    logits_NK = np.array([[2.0, 0.0], [1.0, 1.0]])
    assert known_scores(logits_NK, "probability", 2.0) == pytest.approx(
        softmax(logits_NK / 2, axis=1).max(axis=1)
    )
    assert known_scores(logits_NK, "logit").tolist() == [2.0, 1.0]
    assert known_scores(logits_NK, "energy") == pytest.approx(np.log(np.exp(logits_NK).sum(axis=1)))


def test_a_calibration_is_kept_and_one_of_an_earlier_version_is_refused(tmp_path):
    checkpoint = tmp_path / "best.safetensors"
    checkpoint.write_bytes(b"tensors")
    logits_NK, labels_N = drawn(np.random.default_rng(7), "honest", 3.0, 6, 2.0, 500)
    fitted = calibrate(logits_NK, labels_N, checkpoint=file_digest(checkpoint), on="made up")
    write_calibration(fitted, checkpoint)
    assert read_calibration(checkpoint) == fitted
    old = {"format": 1, "checkpoint": file_digest(checkpoint), "temperature": 0.0255}
    sidecar(checkpoint).write_text(json.dumps(old, indent=1))
    with pytest.raises(DataError, match="an earlier version fitted it") as caught:
        read_calibration(checkpoint)
    assert "--calibrate" in caught.value.remedy
