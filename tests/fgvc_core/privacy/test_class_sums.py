import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fgvc_core.privacy.class_sums import (
    centre_sum,
    clipped_class_sums,
    counted_sums,
    sums_bound,
    sums_deviation,
    unit_vectors,
)
from fgvc_core.privacy.noise import make_grid, release
from fgvc_core.privacy.whitening import first_bound

CLASSES = 3
hostile = st.one_of(
    st.floats(-10, 10),
    st.floats(-1e200, 1e200),
    st.sampled_from([np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, 0.0]),
)


@st.composite
def cases(draw):
    count = draw(st.integers(1, 12))
    vectors = draw(hnp.arrays(np.float64, (count, 4), elements=hostile))
    labels = draw(hnp.arrays(np.int64, count, elements=st.integers(0, CLASSES - 1)))
    units = draw(hnp.arrays(np.int64, count, elements=st.integers(0, 4)))
    return vectors, labels, np.unique(units, return_inverse=True)[1].astype(np.int64)


def without(unit, vectors, labels, units):
    kept = units != unit
    renumbered = np.unique(units[kept], return_inverse=True)[1].astype(np.int64)
    return vectors[kept], labels[kept], renumbered


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from([1e-3, 1.0, 1e3]), st.integers(0, 11))
def test_one_unit_moves_the_sums_by_the_bound_at_most(case, bound, pick):
    vectors, labels, units = case
    gone = pick % (units.max() + 1)
    with np.errstate(all="ignore"):
        sums = clipped_class_sums(vectors, labels, units, CLASSES, bound)
        other = clipped_class_sums(*without(gone, vectors, labels, units), CLASSES, bound)
    assert np.isfinite(sums).all()
    assert np.linalg.norm(sums - other) <= bound * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_it_is_the_sum_of_what_each_unit_adds_by_itself(case):
    vectors, labels, units = case
    with np.errstate(all="ignore"):
        sums = clipped_class_sums(vectors, labels, units, CLASSES, 1.0)
    by_hand = np.zeros((CLASSES, 4))
    for unit in range(units.max() + 1):
        own = np.zeros((CLASSES, 4))
        with np.errstate(all="ignore"):
            for at in np.flatnonzero(units == unit):
                own[labels[at]] += vectors[at]
            norm = np.sqrt((own**2).sum())
        if np.isfinite(norm):
            by_hand += own * min(1.0, 1.0 / norm) if norm > 0 else own
    assert np.allclose(sums, by_hand, rtol=1e-9, atol=1e-9)


def test_a_unit_that_is_not_finite_counts_as_zero_and_leaves_the_others():
    vectors = np.array([[1.0, 0], [np.nan, 1], [0, 0.5], [np.inf, 0]])
    sums = clipped_class_sums(vectors, np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2]), 2, 1.0)
    assert sums.tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_clipping_comes_after_the_sum_within_the_unit():
    # Four pictures of one subject count once; four subjects count four times.
    vectors, labels = np.tile([[0.6, 0.8]], (4, 1)), np.zeros(4, dtype=np.int64)
    one = clipped_class_sums(vectors, labels, np.zeros(4, dtype=np.int64), 1, 1.0)
    four = clipped_class_sums(vectors, labels, np.arange(4), 1, 1.0)
    assert np.linalg.norm(one) == pytest.approx(1.0)
    assert np.linalg.norm(four) == pytest.approx(4.0)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float64, (5, 3), elements=hostile))
def test_unit_vectors_have_length_one_or_none(vectors):
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(unit_vectors(vectors), axis=1)
    assert np.isfinite(lengths).all()
    assert (np.isclose(lengths, 1, atol=1e-9) | (lengths == 0)).all()


def noisy(sums, bound, noise_multiplier):
    return release(sums, make_grid(bound, sums.size, noise_multiplier))


def test_no_examples_still_release_noise():
    empty = np.zeros((0, 4)), np.zeros(0, dtype=np.int64)
    labels = np.zeros(0, dtype=np.int64)
    # One drawn value may be zero, three in its place hardly ever.
    centres, drawn = zip(
        *(
            (
                noisy(centre_sum(*empty), first_bound(0.0), 1.0),
                noisy(counted_sums(empty[0], labels, empty[1], 3, 0.1), sums_bound(0.1), 1.0),
            )
            for _ in range(3)
        ),
        strict=True,
    )
    centre, sums = np.any(centres, axis=0), np.any(drawn, axis=0)
    assert centre.shape == (4,)
    assert sums.shape == (3, 5)
    assert centre.all()
    assert sums.all()


def test_what_is_released_is_the_sums_with_the_deviation_that_the_receiver_computes():
    vectors = unit_vectors(np.random.default_rng(0).standard_normal((6, 4)))
    labels, units = np.array([0, 0, 1, 2, 2, 2]), np.arange(6)
    sums = counted_sums(vectors, labels, units, 3, 0.1)
    for label in range(3):
        assert np.allclose(sums[label, :4], vectors[labels == label].sum(axis=0))
        assert sums[label, 4] == pytest.approx(0.1 * (labels == label).sum())
    grid = make_grid(sums_bound(0.1), sums.size, 2.5)
    assert grid.deviation == sums_deviation(3, 4, 0.1, 2.5)
    assert grid.deviation == pytest.approx(2.5 * sums_bound(0.1), rel=0.011)
    assert np.allclose(centre_sum(vectors, units), vectors.sum(axis=0))
    assert make_grid(first_bound(0.0), 4, 1.0).deviation == pytest.approx(1.0, rel=0.011)
