"""The regression of all sites' pictures is scikit-learn's on the same pictures in one place."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from fgvc_core.models.class_statistics import added, class_statistics
from fgvc_core.models.head_stack import ALL, plain_stack, read_gradients, site_gradients
from fgvc_core.models.regression import NEVER, Geometry, Regression, Summed, summed_loss
from fgvc_core.training.settings import TrainSettings

CLASSES, DIM = 6, 40
PENALTY = 3.0


def pictures(seed, counts):
    """Vectors like those of a network: correlated, shifted, of unlike variances."""
    draw = np.random.default_rng(5)
    means_KD = 0.7 * draw.normal(size=(CLASSES, DIM)) + 2.0
    mixing_DD = draw.normal(size=(DIM, DIM)) * np.geomspace(1.0, 0.05, DIM)
    draw = np.random.default_rng(seed)
    labels_N = np.repeat(np.arange(CLASSES), counts)
    vectors_ND = means_KD[labels_N] + draw.normal(size=(len(labels_N), DIM)) @ mixing_DD / 3
    return vectors_ND.astype(np.float32), labels_N


# Unlike class distributions, classes that a site lacks, a class of one picture, a site of one.
SITES = [
    pictures(1, [40, 0, 3, 1, 9, 0]),
    pictures(2, [0, 25, 30, 0, 0, 0]),
    pictures(3, [5, 5, 0, 0, 60, 8]),
    pictures(4, [0, 0, 0, 0, 1, 0]),
]


def pooled(sites=SITES):
    return tuple(np.concatenate(parts) for parts in zip(*sites, strict=True))


def geometry_of(sites=SITES):
    return Geometry(added(class_statistics(*site, CLASSES, True) for site in sites))


def messages_to(one, sites):
    """Fit with float32 heads and gradients, as they are sent."""
    while not one.done:
        stack = plain_stack([(*one.head, ALL)])
        answers = [site_gradients(*s, np.zeros(len(s[1]), np.int64), stack) for s in sites]
        found = [read_gradients(answer, 0) for answer in answers]
        one.take(_added(found))
    return one.evaluations


def _added(found):
    total = found[0]
    for one in found[1:]:
        total = total.plus(one)
    return total


def reference(vectors_ND, labels_N, geometry):
    standard_ND = (vectors_ND - geometry.mean_D) / geometry.scale
    found = LogisticRegression(C=1 / PENALTY, tol=1e-10, max_iter=10_000)
    return found.fit(standard_ND, labels_N), standard_ND


def objective(weights_KD, biases_K, standard_ND, labels_N):
    loss = summed_loss(standard_ND, labels_N, weights_KD, biases_K).loss
    return loss + PENALTY / 2 * (weights_KD**2).sum()


def test_the_federations_regression_is_that_of_all_pictures_in_one_place():
    vectors_ND, labels_N = pooled()
    geometry = geometry_of()
    expected, standard_ND = reference(vectors_ND, labels_N, geometry)
    one = Regression(geometry, PENALTY, 1e-9, 200)
    messages_to(one, SITES)
    least = objective(expected.coef_, expected.intercept_, standard_ND, labels_N)
    assert one.value == pytest.approx(least, rel=1e-6)
    weights_KD, biases_K = one.head
    tried_ND = pictures(9, [20] * CLASSES)[0]
    found_NK = softmax(tried_ND.astype(np.float64) @ weights_KD.T + biases_K, axis=1)
    shares_NK = expected.predict_proba((tried_ND - geometry.mean_D) / geometry.scale)
    np.testing.assert_allclose(found_NK, shares_NK, atol=1e-4)


def test_the_usual_precision_takes_some_thirty_messages_and_is_close():
    vectors_ND, labels_N = pooled()
    geometry = geometry_of()
    expected, standard_ND = reference(vectors_ND, labels_N, geometry)
    one = Regression(geometry, PENALTY, TrainSettings().start_precision, 100)
    assert messages_to(one, SITES) <= 35
    least = objective(expected.coef_, expected.intercept_, standard_ND, labels_N)
    assert least <= one.value <= least * (1 + 3e-4)


def test_how_the_pictures_are_dealt_does_not_matter():
    vectors_ND, labels_N = pooled()
    whole = Regression(geometry_of(), PENALTY, 1e-9, 200)
    messages_to(whole, [(vectors_ND, labels_N)])
    dealt = Regression(geometry_of(), PENALTY, 1e-9, 200)
    messages_to(dealt, SITES)
    np.testing.assert_allclose(dealt.head[0], whole.head[0], atol=1e-4)
    assert dealt.value == pytest.approx(whole.value, rel=1e-8)


def test_a_class_that_no_site_has_is_never_answered_and_the_others_are_as_without_it():
    sites = [pictures(1, [30, 10, 0, 5, 9, 4])]
    one = Regression(geometry_of(sites), PENALTY, 1e-9, 200)
    messages_to(one, sites)
    weights_KD, biases_K = one.head
    assert biases_K[2] == NEVER
    assert not weights_KD[2].any()
    vectors_ND, labels_N = sites[0]
    expected, standard_ND = reference(vectors_ND, labels_N, one.geometry)
    kept = np.arange(CLASSES) != 2
    least = objective(expected.coef_, expected.intercept_, standard_ND, labels_N - (labels_N > 2))
    assert one.value == pytest.approx(least, rel=1e-6)
    assert kept[(vectors_ND @ weights_KD.T + biases_K).argmax(axis=1)].all()


def test_the_gradient_is_that_of_the_loss():
    vectors_ND, labels_N = pooled()
    draw = np.random.default_rng(0)
    weights_KD, biases_K = draw.normal(size=(CLASSES, DIM)) / 9, draw.normal(size=CLASSES)
    found = summed_loss(vectors_ND, labels_N, weights_KD, biases_K, batch_size=7)
    step_KD, step_K = draw.normal(size=(CLASSES, DIM)), draw.normal(size=CLASSES)
    above, below = (
        summed_loss(vectors_ND, labels_N, weights_KD + s * step_KD, biases_K + s * step_K).loss
        for s in (1e-5, -1e-5)
    )
    slope = (found.weight_KD * step_KD).sum() + (found.bias_K * step_K).sum()
    assert (above - below) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_a_site_that_is_lost_on_the_way_leaves_the_regression_of_the_others():
    one = Regression(geometry_of(), PENALTY, 1e-9, 200)
    for _ in range(5):
        one.take(_added([summed_loss(*site, *one.head) for site in SITES]))
    one.restart()
    messages_to(one, SITES[:3])
    alone = Regression(geometry_of(), PENALTY, 1e-9, 200)
    messages_to(alone, SITES[:3])
    assert one.value == pytest.approx(alone.value, rel=1e-7)


def test_a_start_from_the_optimum_takes_one_message():
    one = Regression(geometry_of(), PENALTY, 1e-8, 200)
    messages_to(one, SITES)
    again = Regression(geometry_of(), PENALTY, 1e-5, 200, one.head)
    assert messages_to(again, SITES) == 1


def test_sums_that_contradict_each_other_end_the_fit_with_the_best_point():
    draw = np.random.default_rng(3)
    one = Regression(geometry_of(), PENALTY, 1e-9, 50)
    values = []
    while not one.done:
        loss = float(draw.uniform(100, 200))
        noise = Summed(loss, draw.normal(size=(CLASSES, DIM)), draw.normal(size=CLASSES))
        values.append(loss)
        one.take(noise)
    assert one.evaluations <= 50
    assert all(np.isfinite(array).all() for array in one.head)


def test_one_seed_gives_the_same_bits():
    heads = []
    for _ in range(2):
        one = Regression(geometry_of(), PENALTY, 1e-5, 100)
        messages_to(one, SITES)
        heads.append(one.head)
    assert heads[0][0].tobytes() == heads[1][0].tobytes()
    assert heads[0][1].tobytes() == heads[1][1].tobytes()
