import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from fgvc_core.errors import PeerError
from fgvc_core.models.class_statistics import (
    COUNTS,
    SCATTER,
    SUMS,
    class_statistics,
    discriminant_scores,
    means_scores,
    pack_statistics,
    semantic_scores,
    statistics_shapes,
    unpack_statistics,
)


def blobs(seed, count=90, dim=6, classes=3):
    rng = np.random.default_rng(seed)
    labels_N = np.arange(count) % classes
    spread_DD = rng.normal(size=(dim, dim)) / 2
    means_KD = rng.normal(size=(classes, dim))
    values = means_KD[labels_N] + rng.normal(size=(count, dim)) @ spread_DD
    return values.astype(np.float32), labels_N


def statistics(features_ND, labels_N, classes=3):
    return class_statistics(features_ND, labels_N, classes, scatter=True)


@given(seed=st.integers(0, 1000), cut=st.integers(0, 90))
@settings(max_examples=25, deadline=None)
def test_what_sites_add_up_to_is_what_one_site_would_have_had(seed, cut):
    features_ND, labels_N = blobs(seed)
    parts = [statistics(features_ND[s], labels_N[s]) for s in (slice(cut), slice(cut, None))]
    carried = [unpack_statistics(pack_statistics(part)) for part in parts]
    total, whole = carried[0].plus(carried[1]), statistics(features_ND, labels_N)
    assert total.counts_K.tolist() == whole.counts_K.tolist()
    np.testing.assert_allclose(total.within_DD(), whole.within_DD(), rtol=1e-4, atol=1e-4)
    for scores in (means_scores, lambda s: discriminant_scores(s, 0.2, 0.0)):
        for one, other in zip(scores(total), scores(whole), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("shrinkage", [0.05, 0.5])
def test_discriminants_are_those_of_scikit_learn(shrinkage):
    features_ND, labels_N = blobs(4)
    theirs = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage=shrinkage, priors=np.full(3, 1 / 3)
    ).fit(features_ND.astype(np.float64), labels_N)
    weights_KD, biases_K = discriminant_scores(statistics(features_ND, labels_N), shrinkage, 0.0)
    ours_NK = features_ND @ weights_KD.T + biases_K
    theirs_NK = theirs.decision_function(features_ND)
    # Theirs divides the covariance by N, ours by N - K; and ours leaves out what classes share.
    differences = [x - x.mean(axis=1, keepdims=True) for x in (ours_NK * 90 / 87, theirs_NK)]
    np.testing.assert_allclose(differences[0], differences[1], rtol=1e-3, atol=1e-3)


def test_the_prior_adds_the_log_of_each_classs_share():
    features_ND, labels_N = blobs(4)
    found = statistics(features_ND, np.where(np.arange(90) < 60, 0, labels_N))
    (_, even_K), (_, full_K) = (discriminant_scores(found, 0.1, prior) for prior in (0.0, 1.0))
    assert np.exp(full_K - even_K) == pytest.approx((found.counts_K + 1) / 93)


def test_nearest_mean_scores_choose_the_nearest_mean():
    features_ND, labels_N = blobs(2)
    found = statistics(features_ND, labels_N)
    weights_KD, biases_K = means_scores(found)
    distances_NK = ((features_ND[:, None] - found.means_KD) ** 2).sum(axis=2)
    chosen_N = (features_ND @ weights_KD.T + biases_K).argmax(axis=1)
    assert (chosen_N == distances_NK.argmin(axis=1)).all()


def test_at_full_shrinkage_discriminants_are_the_nearest_mean():
    features_ND, labels_N = blobs(3)
    found = statistics(features_ND, labels_N)
    scores = [
        features_ND @ w.T + b
        for w, b in (means_scores(found), discriminant_scores(found, 1.0, 0.0))
    ]
    assert (scores[0].argmax(axis=1) == scores[1].argmax(axis=1)).all()


def test_a_class_without_a_picture_and_equal_vectors_give_finite_scores():
    features_ND = np.ones((4, 5), dtype=np.float32)
    found = statistics(features_ND, np.array([0, 0, 1, 1]))
    for weights_KD, biases_K in (means_scores(found), discriminant_scores(found, 0.1, 1.0)):
        assert np.isfinite(weights_KD).all()
        assert np.isfinite(biases_K).all()


def test_what_travels_has_the_announced_shapes_and_half_of_the_scatter():
    features_ND, labels_N = blobs(1)
    packed = pack_statistics(statistics(features_ND, labels_N))
    assert {n: a.shape for n, a in packed.items()} == statistics_shapes(3, 6, True)
    assert packed[SCATTER].shape == (21,)
    means_only = pack_statistics(class_statistics(features_ND, labels_N, 3, scatter=False))
    assert {n: a.shape for n, a in means_only.items()} == statistics_shapes(3, 6, False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.update({COUNTS: np.array([-1.0, 1, 1], np.float32)}), "no counts"),
        (lambda p: p.update({COUNTS: np.array([1.5, 1, 1], np.float32)}), "no counts"),
        (lambda p: p.update({COUNTS: np.array([0.0, 1, 1], np.float32)}), "not zero"),
        (lambda p: p.update({SUMS: p[SUMS] * 100}), "not of the same vectors"),
        (lambda p: p.update({SCATTER: -p[SCATTER]}), "not of the same vectors"),
    ],
)
def test_statistics_that_cannot_be_are_refused(change, said):
    features_ND, labels_N = blobs(1)
    packed = pack_statistics(statistics(features_ND, labels_N))
    change(packed)
    with pytest.raises(PeerError, match=said):
        unpack_statistics(packed)


def test_a_class_without_a_picture_is_named_by_its_attributes():
    rng = np.random.default_rng(0)
    attributes_KA = rng.uniform(size=(24, 5))
    mixing_AD = rng.normal(size=(5, 20))
    labels_N = np.arange(2400) % 24
    features_ND = attributes_KA[labels_N] @ mixing_AD + 0.05 * rng.normal(size=(2400, 20))
    seen_N = labels_N < 20
    found = class_statistics(
        features_ND[seen_N].astype(np.float32), labels_N[seen_N], 24, scatter=True
    )
    weights_KD, biases_K = semantic_scores(found, attributes_KA, 0.3)
    scores_NK = features_ND[~seen_N] @ weights_KD.T + biases_K
    among_unseen_N = scores_NK[:, 20:].argmax(axis=1) + 20
    # Four classes: chance is a quarter.
    assert (among_unseen_N == labels_N[~seen_N]).mean() > 0.7
    shuffled_KA = attributes_KA[[*range(20), 21, 22, 23, 20]]
    weights_KD, biases_K = semantic_scores(found, shuffled_KA, 0.3)
    wrong_N = (features_ND[~seen_N] @ weights_KD.T + biases_K)[:, 20:].argmax(axis=1) + 20
    assert (wrong_N == labels_N[~seen_N]).mean() < 0.3
