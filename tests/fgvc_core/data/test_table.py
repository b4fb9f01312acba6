"""Folds of a site's training pictures: subjects whole, classes spread, by the site's key alone."""

import numpy as np

from fgvc_core.data.table import fold_numbers


def test_a_subject_is_in_one_fold_and_classes_are_spread_over_all():
    draw = np.random.default_rng(0)
    subjects = [f"s{number}" for number in draw.integers(0, 120, 600)]
    of_subject = {name: int(draw.integers(0, 6)) for name in sorted(set(subjects))}
    labels_N = np.array([of_subject[name] for name in subjects])
    fold_N = fold_numbers(subjects, labels_N, 3, b"key")
    for name in set(subjects):
        assert len({f for f, s in zip(fold_N, subjects, strict=True) if s == name}) == 1
    for label in range(6):
        held = [
            len({s for s, f, k in zip(subjects, fold_N, labels_N, strict=True) if (f, k) == at})
            for at in ((0, label), (1, label), (2, label))
        ]
        assert max(held) - min(held) <= 1


def test_folds_follow_from_names_and_key_and_not_from_the_order_of_rows():
    subjects = [f"s{number}" for number in range(40)]
    labels_N = np.arange(40) % 4
    found = fold_numbers(subjects, labels_N, 5, b"key")
    turned = fold_numbers(subjects[::-1], labels_N[::-1], 5, b"key")
    np.testing.assert_array_equal(found, turned[::-1])
    assert (fold_numbers(subjects, labels_N, 5, b"other") != found).any()
    assert len(fold_numbers([], np.zeros(0, np.int64), 5, b"key")) == 0
