import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from fgvc_core.privacy.accountant import epsilon_of_plan
from fgvc_core.privacy.class_sums import centre_sum, clipped_class_sums, unit_vectors
from fgvc_core.privacy.noise import make_grid, release
from fgvc_core.privacy.planning import plan_for
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.privacy.whitening import (
    first_bound,
    first_length,
    first_mean,
    first_rows,
    first_tensors,
    scatter_weight,
)

P = 6
PRIVATE = PrivacySettings(epsilon=4.0, scatter_share=0.05)
WEIGHT = scatter_weight(PRIVATE)


def vectors(seed, count=400, scale=(5, 3, 1, 1, 0.3, 0.1)):
    random = np.random.default_rng(seed)
    return unit_vectors(random.standard_normal((count, P)) * scale + 1.0)


def test_a_row_of_a_vector_of_length_one_is_as_long_as_the_bound():
    rows = first_rows(vectors(1), WEIGHT)
    assert rows.shape == (400, first_length(P, WEIGHT)) == (400, 6 + 21)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), first_bound(WEIGHT), rtol=1e-12)


def test_the_scatters_part_has_the_frobenius_norm_of_the_difference_of_scatters():
    one, other = vectors(2, 2)
    rows = first_rows(np.stack([one, other]), 1.0)[:, P:]
    frobenius = np.linalg.norm(np.outer(one, one) - np.outer(other, other))
    assert np.linalg.norm(rows[0] - rows[1]) == pytest.approx(frobenius, abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(np.float64, (9, P), elements=st.floats(-1e6, 1e6)),
    hnp.arrays(np.int64, 9, elements=st.integers(0, 3)),
    st.sampled_from([0.0, 0.5, WEIGHT, 20.0]),
    st.integers(0, 8),
)
def test_one_unit_moves_the_first_message_by_its_bound_at_most(given_NP, units, weight, pick):
    """The worst pairs are among these: many pictures of one unit, all alike, against none."""
    rows_NP = unit_vectors(given_NP)
    units = np.unique(units, return_inverse=True)[1].astype(np.int64)
    kept = units != units[pick]
    fewer = np.unique(units[kept], return_inverse=True)[1].astype(np.int64)
    moved = centre_sum(rows_NP, units, weight) - centre_sum(rows_NP[kept], fewer, weight)
    assert np.linalg.norm(moved) <= first_bound(weight) * (1 + 1e-9)


def test_a_unit_of_many_equal_pictures_counts_as_one():
    row = np.repeat(vectors(3, 1), 50, axis=0)
    whole = centre_sum(row, np.zeros(50, np.int64), WEIGHT)
    assert np.linalg.norm(whole) == pytest.approx(first_bound(WEIGHT), rel=1e-9)


def test_rows_are_summed_in_blocks_of_units_to_the_same_sum():
    random = np.random.default_rng(5)
    units = random.integers(0, 700, 1500)
    units_N = np.unique(units, return_inverse=True)[1].astype(np.int64)
    rows_NP = vectors(6, 1500)
    whole_NQ = first_rows(rows_NP, WEIGHT)
    everyone_N = np.zeros(1500, np.int64)
    expected_Q = clipped_class_sums(whole_NQ, everyone_N, units_N, 1, first_bound(WEIGHT))[0]
    np.testing.assert_allclose(centre_sum(rows_NP, units_N, WEIGHT), expected_Q, atol=1e-10)
    np.testing.assert_allclose(first_mean(rows_NP, WEIGHT), whole_NQ.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("a_unit", [1, 8000])
def test_memory_is_that_of_a_block_whatever_the_number_of_pictures(a_unit):
    """All rows at once would be 8,000 x 560 values, 36 MB."""
    rows_NP = unit_vectors(np.random.default_rng(7).standard_normal((8000, 32)))
    tracemalloc.start()
    centre_sum(rows_NP, np.arange(8000) // a_unit, WEIGHT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_one_message_costs_what_two_at_their_shares_would_and_the_noise_is_theirs():
    joint = plan_for(PRIVATE, 1)
    first, sums = (event.noise_multiplier for event in joint)
    assert epsilon_of_plan(joint, PRIVATE.delta) == pytest.approx(4.0, rel=2e-3)
    base = (first**-2 + sums**-2) ** -0.5
    on_vectors = first * first_bound(WEIGHT)
    assert on_vectors == pytest.approx(base / PRIVATE.centre_share**0.5, rel=1e-9)
    assert on_vectors / WEIGHT == pytest.approx(base / PRIVATE.scatter_share**0.5, rel=1e-9)


def test_without_a_scatter_the_plan_and_the_message_are_as_they_were():
    plain = PrivacySettings(epsilon=4.0)
    assert scatter_weight(plain) == 0
    rows = vectors(4)
    assert first_rows(rows, 0.0) is rows
    assert set(first_tensors(rows.mean(axis=0), P, 0.0, 1.0)) == {"head.centre"}


def test_with_many_pictures_the_spread_is_nearly_even_afterwards():
    rows = vectors(5, 20_000)
    grid = make_grid(first_bound(WEIGHT), first_length(P, WEIGHT), 5.0)
    noisy = release(centre_sum(rows, np.arange(len(rows)), WEIGHT), grid) / len(rows)
    found = first_tensors(noisy, P, WEIGHT, grid.deviation / len(rows))
    around = rows - found["head.centre"]
    white = around @ found["head.whitening"].T.astype(np.float64)

    def unevenness(of):
        values = np.linalg.eigvalsh(of.T @ of)
        return values[-1] / values[0]

    # Half of full whitening leaves the root of it.
    assert unevenness(white) < 2 * unevenness(around) ** 0.5


def test_at_much_noise_the_whitening_is_the_identity():
    found = first_tensors(first_rows(vectors(6), WEIGHT).mean(axis=0), P, WEIGHT, 1e4)
    np.testing.assert_allclose(found["head.whitening"], np.eye(P), atol=1e-3)


def test_shares_that_leave_nothing_or_do_not_belong_are_refused():
    with pytest.raises(ValidationError, match="leaves nothing"):
        PrivacySettings(epsilon=1.0, centre_share=0.5, scatter_share=0.5)
    with pytest.raises(ValidationError, match="method = 'class-sums'"):
        PrivacySettings(epsilon=1.0, scatter_share=0.05, method="gradients")
