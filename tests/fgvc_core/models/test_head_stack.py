"""What a site answers about heads: gradients over learned folds, counts over held-out ones."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from fgvc_core.errors import PeerError
from fgvc_core.models.head_stack import (
    ALL,
    COUNTS,
    FOLD,
    HeadStack,
    macro_f1,
    plain_stack,
    read_gradients,
    read_stack,
    site_counts,
    site_gradients,
    top1,
)
from fgvc_core.models.regression import summed_loss

CLASSES, DIM, PICTURES = 4, 7, 90
DRAW = np.random.default_rng(0)
VECTORS = DRAW.normal(size=(PICTURES, DIM)).astype(np.float32)
LABELS = DRAW.integers(0, CLASSES - 1, PICTURES)
FOLDS = np.arange(PICTURES) % 3


def stack(heads=3, variants=2, folds=(0, 2, ALL)):
    return HeadStack(
        DRAW.normal(size=(heads, CLASSES, DIM)).astype(np.float32),
        DRAW.uniform(0.5, 2, size=(heads, variants, CLASSES)).astype(np.float32),
        DRAW.normal(size=(heads, variants, CLASSES)).astype(np.float32),
        np.array(folds),
    )


def test_a_gradient_is_over_the_folds_that_a_head_learns_from():
    heads = plain_stack(
        [(DRAW.normal(size=(CLASSES, DIM)).astype(np.float32), np.zeros(CLASSES, np.float32), f)
         for f in (1, ALL)]
    )  # fmt: skip
    answer = site_gradients(VECTORS, LABELS, FOLDS, heads)
    for m, learned in enumerate((FOLDS != 1, FOLDS >= 0)):
        head = heads.weight_MKD[m], heads.bias_MVK[m, 0]
        expected = summed_loss(VECTORS[learned], LABELS[learned], *head)
        found = read_gradients(answer, m)
        # A float64 loss travels as two float32.
        assert found.loss == pytest.approx(expected.loss, rel=1e-13)
        np.testing.assert_allclose(found.weight_KD, expected.weight_KD, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(found.bias_K, expected.bias_K, rtol=1e-6, atol=1e-5)


def test_top1_and_macro_f1_follow_from_the_counts_of_folds():
    heads = stack()
    counts = site_counts(VECTORS, LABELS, FOLDS, heads)[COUNTS]
    assert not counts[2].any()  # No fold is held out from the last head.
    for m in range(2):
        held = heads.fold_M[m] == FOLDS
        for v in range(2):
            logits = heads.scale_MVK[m, v] * (VECTORS[held] @ heads.weight_MKD[m].T)
            answers = (logits + heads.bias_MVK[m, v]).argmax(axis=1)
            assert top1(counts[m, v]) == pytest.approx(accuracy_score(LABELS[held], answers))
            present = np.unique(LABELS[held])
            expected = f1_score(LABELS[held], answers, labels=present, average="macro")
            assert macro_f1(counts[m, v]) == pytest.approx(expected)


def test_a_site_without_pictures_answers_zeros():
    heads = plain_stack([(np.ones((CLASSES, DIM), np.float32), np.ones(CLASSES, np.float32), ALL)])
    none = VECTORS[:0], LABELS[:0], FOLDS[:0]
    answers = site_gradients(*none, heads) | site_counts(*none, heads)
    assert not any(array.any() for array in answers.values())


@pytest.mark.parametrize("most", [1, 200, 1e9])
def test_a_stack_is_sent_in_parts_that_fit_and_lose_nothing(most):
    heads = stack()
    parts = heads.chunks(most)
    assert len(parts) == {1: 3, 200: 2, 1e9: 1}[most] or most == 200
    for name, array in heads.packed().items():
        assert np.concatenate([part.packed()[name] for part in parts]).tobytes() == array.tobytes()


@pytest.mark.parametrize("fold", [3, -2, 0.5])
def test_a_fold_that_the_recipe_does_not_have_is_refused(fold):
    packed = stack().packed()
    packed[FOLD][1] = fold
    with pytest.raises(PeerError, match="not one of the 3 of this run"):
        read_stack(packed, 3)
    assert (read_stack(stack().packed(), 3).fold_M == [0, 2, ALL]).all()


def test_a_head_that_is_chosen_for_it_shows_one_pictures_vector():
    """Not protected, and said in the threat model: without privacy a gradient can be of one."""
    along_N = VECTORS @ VECTORS[5] / np.linalg.norm(VECTORS[5])
    first, second = np.sort(along_N)[::-1][:2]
    target, absent = int(along_N.argmax()), CLASSES - 1
    weight_KD, bias_K = np.zeros((CLASSES, DIM), np.float32), np.zeros(CLASSES, np.float32)
    weight_KD[absent] = 1e4 * VECTORS[5] / np.linalg.norm(VECTORS[5])
    bias_K[absent] = -1e4 * (first + second) / 2
    heads = plain_stack([(weight_KD, bias_K, ALL)])
    found = read_gradients(site_gradients(VECTORS, LABELS, FOLDS, heads), 0)
    np.testing.assert_allclose(found.weight_KD[absent], VECTORS[target], rtol=1e-4)
