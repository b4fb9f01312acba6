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
    Tried,
    best_head,
    closed_form,
    regression_head,
    safe_choice,
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
    kinds = {one.kind for one in found.candidate.members or (found.candidate,)}
    assert kinds & {"discriminant", "cosine"}
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
    (one,) = (
        one for one in found.candidate.members or (found.candidate,) if one.kind == "regression"
    )
    settings = TrainSettings(start="regression", start_penalty=one.penalty)
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


def test_the_metric_that_decides_is_the_recipes():
    train = drawn(3, [150, 80, 6, 5, 4], spread=2.2)
    for metric, name in (("top1", "top1"), ("macro-f1", "macro_f1")):
        found = search(*train, start_metric=metric)
        (chosen,) = (one for one in found.tried if one.candidate == found.candidate)
        best = max(found.tried, key=lambda one: getattr(one, name))
        # The best, or a blend within a standard error of it.
        lead = getattr(best, name) - getattr(chosen, name)
        assert lead <= best.error_beside(chosen, metric)
        assert lead == 0 or chosen.candidate.members


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
    assert [t.as_json() for t in one.tried] == [t.as_json() for t in two.tried]


def spread(head, vectors_ND):
    logits_NK = vectors_ND.astype(np.float64) @ (head[0] - head[0].mean(axis=0)).T
    return np.sqrt(logits_NK.var(axis=0).mean())


def test_a_blend_adds_its_members_logits_each_in_its_own_unit():
    vectors_ND, labels_N = drawn(5, [40] * CLASSES, spread=2.5)
    found = search(vectors_ND, labels_N, start_precision=1e-9)
    assert "regression" in [one.kind for one in found.candidate.members]
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


def tried(name, *rights, members=0, of=30):
    """A candidate's result: right answers of each fold (rows) and class (columns)."""
    one = Candidate(name) if not members else Candidate("blend", members=tuple(KIND[:members]))
    correct_FK = np.array(rights, dtype=float)
    support_FK = np.full_like(correct_FK, of)
    return Tried(one, np.stack([support_FK, support_FK, correct_FK], axis=1))


KIND = [Candidate("discriminant"), Candidate("cosine"), Candidate("regression")]


def test_the_error_beside_another_is_that_of_the_difference_and_not_of_the_score():
    # Both miss the same pictures but for one in each of two folds, one way and the other.
    one = tried("discriminant", [20, 10], [24, 14], [16, 12])
    other = tried("cosine", [21, 10], [23, 14], [16, 12])
    assert one.top1 == other.top1
    assert one.error_beside(other, "top1") == pytest.approx(np.sqrt(2 * 3 / 2) / 180)
    # That one of them prefers a class in every fold is no error.
    prefers = tried("cosine", [25, 7], [29, 11], [21, 9])
    assert one.error_beside(prefers, "top1") == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("results", "chosen"),
    [
        # All about alike: the blend of all kinds, though another was luckier.
        ([[21, 20, 19], [20, 21, 18], [20, 19, 20], [20, 20, 20]], "all"),
        # One kind clearly worse: not in the blend.
        ([[21, 20, 19], [12, 11, 12], [20, 19, 20], [20, 20, 20]], "two"),
        # One kind clearly better than every blend.
        ([[28, 28, 28], [11, 11, 11], [12, 12, 12], [20, 20, 20]], "one"),
    ],
)
def test_a_blend_is_taken_unless_another_is_clearly_better(results, chosen):
    kinds = [
        Tried(kind, tried("cosine", *[[n, 20] for n in rights]).counts_F3K)
        for kind, rights in zip(KIND, results, strict=False)
    ]
    every = Tried(
        Candidate("blend", members=tuple(KIND)),
        tried("cosine", *[[n, 20] for n in results[3]]).counts_F3K,
    )
    pair = Candidate("blend", members=(KIND[0], KIND[2]))
    both = Tried(pair, every.counts_F3K)
    expected = {"all": every.candidate, "two": pair, "one": KIND[0]}[chosen]
    assert safe_choice([*kinds, every, both], "top1") == expected
