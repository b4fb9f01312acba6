"""A site's answers about heads are those of one convex function, or it is said why not."""

from dataclasses import replace

import numpy as np
import pytest

from fgvc_core.models.class_statistics import class_statistics
from fgvc_core.models.regression import Geometry, Regression, Summed, summed_loss
from fieldmark.server.screening.convexity import KEPT, ConvexAnswers

CLASSES, DIM, PICTURES = 5, 8, 60


def vectors(seed=0, scale=1.0):
    draw = np.random.default_rng(seed)
    labels_N = draw.integers(CLASSES, size=PICTURES)
    means_KD = np.random.default_rng(7).normal(size=(CLASSES, DIM))
    features_ND = scale * (means_KD[labels_N] + draw.normal(size=(PICTURES, DIM)))
    return features_ND.astype(np.float32), labels_N


def sent(found):
    """As it is read from float32 tensors."""
    single = (np.float32(a).astype(np.float64) for a in (found.weight_KD, found.bias_K))
    return Summed(found.loss, *single)


def heads(count, size=1.0, seed=3):
    draw = np.random.default_rng(seed)
    for _ in range(count):
        yield (size * draw.normal(size=(CLASSES, DIM)).astype(np.float32),
               size * draw.normal(size=CLASSES).astype(np.float32))  # fmt: skip


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_no_honest_site_contradicts_itself_whatever_heads_it_is_asked_about(size, scale):
    answers = ConvexAnswers()
    for head in heads(3 * KEPT, size):
        answers.begin(head)
        for site in range(3):
            found = sent(summed_loss(*vectors(site, scale), *head))
            assert answers.contradiction(f"site-{site}", found) is None


def test_no_honest_site_contradicts_itself_in_a_whole_fit():
    features_ND, labels_N = vectors()
    one = Regression(
        Geometry(class_statistics(features_ND, labels_N, CLASSES, True)), 1.0, 1e-12, 100
    )
    answers = ConvexAnswers()
    while not one.done:
        answers.begin(one.head)
        found = sent(summed_loss(features_ND, labels_N, *one.head))
        assert answers.contradiction("site-1", found) is None
        one.take(found)
    assert one.evaluations > KEPT


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 3.0])
def test_a_loss_that_its_gradients_do_not_explain_is_a_contradiction(factor):
    first, second = heads(2, 0.1)
    answers, pictures = ConvexAnswers(), vectors()
    answers.begin(first)
    assert answers.contradiction("site-1", sent(summed_loss(*pictures, *first))) is None
    answers.begin(second)
    found = sent(summed_loss(*pictures, *second))
    lied = answers.contradiction("site-1", replace(found, loss=factor * found.loss))
    assert lied is not None
    assert "are of no pictures" in lied
    assert answers.contradiction("site-1", found) is None


def test_a_gradient_of_a_turned_sign_is_a_contradiction():
    first, second = heads(2)
    answers, pictures = ConvexAnswers(), vectors()
    answers.begin(first)
    found = sent(summed_loss(*pictures, *first))
    turned = Summed(found.loss, -found.weight_KD, -found.bias_K)
    assert answers.contradiction("site-1", turned) is None
    answers.begin(second)
    assert answers.contradiction("site-1", sent(summed_loss(*pictures, *second)))
