"""The search for a head chooses by held-out folds alone, and fits what it chose on all of them."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from fgvc_core.data.table import fold_numbers
from fgvc_core.errors import RunFailed
from fgvc_core.models.class_statistics import added, class_statistics
from fgvc_core.training.head_search import (
    PENALTIES,
    SHRINKAGES,
    Candidate,
    Pooled,
    best_head,
    closed_form,
    regression_head,
)
from fgvc_core.training.settings import TrainSettings

CLASSES, DIM = 5, 24


def drawn(seed, counts, spread=1.0, far=None):
    """Gaussian classes; ``far``: share of pictures thrown far away, which spoil a covariance."""
    means_KD = np.random.default_rng(7).normal(size=(CLASSES, DIM))
    draw = np.random.default_rng(seed)
    labels_N = np.repeat(np.arange(CLASSES), counts)
    vectors_ND = means_KD[labels_N] + spread * draw.normal(size=(len(labels_N), DIM))
    if far is not None:
        thrown = draw.random(len(labels_N)) < far
        vectors_ND[thrown] += 40 * means_KD[labels_N[thrown]]
    return vectors_ND.astype(np.float32), labels_N


def search(vectors_ND, labels_N, folds=3, **changes):
    settings = TrainSettings(start="auto", start_folds=folds, **changes)
    fold_N = fold_numbers([str(i) for i in range(len(labels_N))], labels_N, folds, b"key")
    sites = Pooled(vectors_ND, labels_N, fold_N)
    return best_head(sites.statistics(CLASSES, folds), settings, sites)


def right(head, vectors_ND, labels_N):
    return float(((vectors_ND @ head[0].T + head[1]).argmax(axis=1) == labels_N).mean())


def test_gaussian_classes_of_one_covariance_are_given_a_closed_form():
    found = search(*drawn(1, [12] * CLASSES, spread=2.0))
    assert found.candidate.kind in ("discriminant", "cosine")
    tested = drawn(2, [200] * CLASSES, spread=2.0)
    known = added([class_statistics(*drawn(1, [12] * CLASSES, spread=2.0), CLASSES, True)])
    best = max(
        right(closed_form(known, Candidate("discriminant", 0.0, one)), *tested)
        for one in SHRINKAGES
    )
    assert right(found.head, *tested) >= best - 0.03


def test_pictures_far_out_are_given_a_regression():
    train = drawn(1, [60] * CLASSES, spread=1.2, far=0.2)
    found = search(*train)
    assert found.candidate.kind == "regression"
    settings = TrainSettings(start="regression", start_penalty=found.candidate.penalty)
    sites = Pooled(*train, np.zeros(len(train[1]), np.int64))
    alone = regression_head(added(sites.statistics(CLASSES, 1)), settings, sites)
    tested = drawn(2, [200] * CLASSES, spread=1.2, far=0.2)
    assert right(found.head, *tested) >= right(alone.head, *tested) - 0.01


def test_every_candidate_is_counted_once_on_every_picture():
    vectors_ND, labels_N = drawn(1, [9, 8, 7, 30, 1])
    found = search(vectors_ND, labels_N)
    assert {one.examples for one in found.tried} == {len(labels_N)}
    assert len({str(one.candidate) for one in found.tried}) == len(found.tried)
    # Three priors and the cosine; three priors; three pairs and all three.
    assert len(found.tried) == 4 * len(SHRINKAGES) + 3 * len(PENALTIES) + 4
    best = max(one.top1 for one in found.tried)
    first = next(one for one in found.tried if one.top1 == best)
    assert first.candidate == found.candidate


def test_the_metric_that_decides_is_the_recipes():
    train = drawn(3, [150, 80, 6, 5, 4], spread=2.2)
    for metric, name in (("top1", "top1"), ("macro-f1", "macro_f1")):
        found = search(*train, start_metric=metric)
        chosen = next(one for one in found.tried if one.candidate == found.candidate)
        assert getattr(chosen, name) == max(getattr(one, name) for one in found.tried)


def test_the_cosine_form_answers_by_the_cosine_in_whitened_coordinates():
    vectors_ND, labels_N = drawn(1, [20] * CLASSES)
    known = class_statistics(vectors_ND, labels_N, CLASSES, True)
    head = closed_form(known, Candidate("cosine", 0.0, 0.4))
    within_DD = known.within_DD()
    scale = np.trace(within_DD) / DIM
    values_D, axes_DD = np.linalg.eigh(0.6 * within_DD + 0.4 * scale * np.eye(DIM))
    white_DD = axes_DD / np.sqrt(values_D)
    centre_D = known.means_KD.mean(axis=0)
    tested_ND = drawn(2, [30] * CLASSES)[0]
    cosines = cosine_similarity(
        (tested_ND - centre_D) @ white_DD, (known.means_KD - centre_D) @ white_DD
    )
    answers_N = (tested_ND @ head[0].T + head[1]).argmax(axis=1)
    assert (answers_N == cosines.argmax(axis=1)).all()


def test_fewer_pictures_than_folds_are_refused_with_what_to_do():
    with pytest.raises(RunFailed, match="fill 2 of 3 folds"):
        search(*drawn(1, [1, 1, 0, 0, 0]))


def test_the_same_pictures_give_the_same_bits():
    one, two = (search(*drawn(1, [20] * CLASSES)) for _ in range(2))
    assert one.head[0].tobytes() == two.head[0].tobytes()
    assert one.tried == two.tried


def spread(head, vectors_ND):
    logits_NK = vectors_ND.astype(np.float64) @ (head[0] - head[0].mean(axis=0)).T
    return np.sqrt(logits_NK.var(axis=0).mean())


def test_a_blend_adds_its_members_logits_each_in_its_own_unit():
    vectors_ND, labels_N = drawn(5, [40] * CLASSES, spread=2.5)
    found = search(vectors_ND, labels_N, start_precision=1e-9)
    assert found.candidate.kind == "blend"
    sites = Pooled(vectors_ND, labels_N, np.zeros(len(labels_N), np.int64))
    total = added(sites.statistics(CLASSES, 1))
    members = []
    for one in found.candidate.members:
        if one.kind == "regression":
            exact = TrainSettings(start_penalty=one.penalty, start_precision=1e-9)
            members.append(regression_head(total, exact, sites).head)
        else:
            members.append(closed_form(total, one))
    logits_NK = sum((vectors_ND @ w.T + b) / spread((w, b), vectors_ND) for w, b in members)
    logits_NK *= spread(members[-1], vectors_ND) / len(members)
    blended_NK = vectors_ND @ found.head[0].T + found.head[1]
    # Equal for all classes, as far as the softmax is concerned.
    apart_NK = blended_NK - logits_NK
    shifts_N1 = apart_NK.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(apart_NK, np.broadcast_to(shifts_N1, apart_NK.shape), atol=2e-3)
    best = max(one.top1 for one in found.tried if one.candidate.kind != "blend")
    assert next(one.top1 for one in found.tried if one.candidate == found.candidate) > best
