import numpy as np
import pytest

from fgvc_core.training.plain import STRENGTHS, plain_regression


def clouds(count, spread, seed, dim=20, classes=4):
    generator = np.random.default_rng(seed)
    centres_KD = np.random.default_rng(9).normal(size=(classes, dim))
    labels_N = np.arange(count) % classes
    vectors_ND = 50 + 3 * (centres_KD[labels_N] + spread * generator.normal(size=(count, dim)))
    return vectors_ND.astype(np.float32), labels_N


def test_it_learns_and_its_strength_is_chosen_by_folds_of_the_training_vectors():
    train_ND, labels_N = clouds(200, 1.0, 1)
    test_MD, truth_M = clouds(400, 1.0, 2)
    found = plain_regression(train_ND, labels_N, [str(n) for n in range(200)], test_MD, 0)
    assert found.strength in STRENGTHS[1:-1]
    right = (found.predicted_M == truth_M).mean()
    assert right > 0.9
    assert found.score == pytest.approx(right, abs=0.08)


def test_a_subject_is_never_on_both_sides_of_a_fold():
    generator = np.random.default_rng(0)
    # Ten equal vectors of each subject, and labels that nothing explains: with a subject on both
    # sides, every fold would be named rightly.
    vectors_ND = np.repeat(generator.normal(size=(30, 40)), 10, axis=0).astype(np.float32)
    labels_N = np.repeat(np.arange(30) % 3, 10)
    subjects = [str(n // 10) for n in range(300)]
    found = plain_regression(vectors_ND, labels_N, subjects, vectors_ND[:3], 0)
    assert found.score < 0.6


def test_one_class_and_too_few_subjects_still_answer():
    vectors_ND = np.eye(3, dtype=np.float32)
    one = plain_regression(vectors_ND, np.array([2, 2, 2]), ["a", "b", "c"], vectors_ND, 0)
    assert one.predicted_M.tolist() == [2, 2, 2]
    assert one.strength is None
    few = plain_regression(vectors_ND, np.array([0, 1, 1]), ["a", "a", "a"], vectors_ND, 0)
    assert few.strength is None
    assert set(few.predicted_M.tolist()) <= {0, 1}
