"""A site's gradients and counts are held against its own class statistics."""

import numpy as np
import pytest

from fgvc_core.models.class_statistics import class_statistics
from fgvc_core.models.head_stack import (
    ALL,
    CORRECT,
    COUNTS,
    PREDICTED,
    SUPPORT,
    HeadStack,
    site_counts,
)
from fgvc_core.models.regression import Summed, summed_loss
from fieldmark.server.screening.heads import SiteFolds, impossible_counts, impossible_gradient

CLASSES, DIM, PICTURES, FOLDS = 5, 12, 60, 3
DRAW = np.random.default_rng(1)
LABELS = DRAW.integers(0, CLASSES, PICTURES)
VECTORS = (DRAW.normal(size=(PICTURES, DIM)) + 2 + LABELS[:, None]).astype(np.float32)
FOLD = np.arange(PICTURES) % FOLDS
KNOWN = SiteFolds.of(
    [class_statistics(VECTORS[f == FOLD], LABELS[f == FOLD], CLASSES, True) for f in range(FOLDS)],
    1.0,
)


def head(scale):
    draw = np.random.default_rng(2)
    return scale * draw.normal(size=(CLASSES, DIM)), scale * draw.normal(size=CLASSES)


def sums(weights_KD, biases_K, fold=ALL):
    learned = fold != FOLD
    return summed_loss(VECTORS[learned], LABELS[learned], weights_KD, biases_K)


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 50.0])
@pytest.mark.parametrize("fold", [ALL, 0, 2])
def test_an_honest_gradient_is_possible_whatever_the_head(scale, fold):
    found = sums(*head(scale), fold)
    assert impossible_gradient(found, head(scale), KNOWN, fold) is None


LIES = [
    (lambda s: s.times(1e6), "biases"),
    (lambda s: s.times(-1.0), "biases"),
    (lambda s: Summed(s.loss, 1e4 * s.weight_KD, s.bias_K), "length"),
    (lambda s: Summed(s.loss, s.weight_KD + 1.0, s.bias_K), "not to zero"),
    (lambda s: Summed(s.loss, s.weight_KD, s.bias_K + 1.0), "biases"),
    (lambda s: Summed(-1.0, s.weight_KD, s.bias_K), "loss of -1"),
    (lambda s: Summed(1e9, s.weight_KD, s.bias_K), "loss of 1e"),
]


@pytest.mark.parametrize(("lie", "said"), LIES)
def test_a_gradient_that_cannot_be_is_refused_with_why(lie, said):
    assert said in impossible_gradient(lie(sums(*head(0.3))), head(0.3), KNOWN, ALL)


def test_a_gradient_of_the_held_out_fold_too_is_refused():
    far = 200 * np.ones(CLASSES)
    far[0] = 0.0
    weights_KD = np.zeros((CLASSES, DIM))
    # Every picture but class 0's is answered wrongly: the biases' gradient tells how many.
    whole = sums(weights_KD, far)
    assert "biases" in impossible_gradient(whole, (weights_KD, far), KNOWN, 1)


def honest_counts():
    draw = np.random.default_rng(4)
    heads = HeadStack(
        draw.normal(size=(3, CLASSES, DIM)).astype(np.float32),
        np.ones((3, 2, CLASSES), np.float32),
        draw.normal(size=(3, 2, CLASSES)).astype(np.float32),
        np.arange(3),
    )
    return site_counts(VECTORS, LABELS, FOLD, heads)[COUNTS].astype(np.float64), heads


def changed(row, klass, by):
    counts, heads = honest_counts()
    counts[1, 1, row, klass] += by
    return counts, heads


def test_honest_counts_are_possible():
    assert impossible_counts(*honest_counts(), KNOWN) is None


@pytest.mark.parametrize(
    ("lied", "said"),
    [
        (changed(SUPPORT, 0, 1), "own class statistics"),
        (changed(PREDICTED, 0, 1), "more or fewer"),
        (changed(CORRECT, 0, 100), "are right"),
        (changed(CORRECT, 0, 0.5), "no counts"),
        (changed(PREDICTED, 0, -100), "no counts"),
    ],
)
def test_counts_that_cannot_be_are_refused_with_why(lied, said):
    assert said in impossible_counts(*lied, KNOWN)
