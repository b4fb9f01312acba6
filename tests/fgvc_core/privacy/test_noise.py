import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fgvc_core.errors import ConfigurationError
from fgvc_core.privacy import noise
from fgvc_core.privacy.noise import (
    BASE_DEVIATION,
    LARGEST_INFLATION,
    RADIX,
    SUMMING,
    Grid,
    discrete_gaussian,
    make_grid,
    release,
)

NEVER = 1e-9
"""Significance of the statistical tests: one false alarm in a billion runs."""


def exact_pmf(deviation, radius):
    """The discrete Gaussian's own probabilities of -radius .. radius, from its definition."""
    values = np.arange(-radius, radius + 1)
    weights = np.exp(-(values**2) / (2 * deviation**2))
    return values, weights / weights.sum()


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_draws_have_the_discrete_gaussians_probabilities(level):
    count, bins = 200_000, 64
    deviation = BASE_DEVIATION * math.sqrt(sum(RADIX ** (2 * i) for i in range(level)))
    drawn = discrete_gaussian(count, level)
    if level == 1:
        values, pmf = exact_pmf(deviation, 14 * BASE_DEVIATION)
        cdf = np.cumsum(pmf)
        borders = np.unique(values[np.searchsorted(cdf, np.arange(1, bins) / bins)])
        expected = np.diff(np.concatenate([[0], cdf[borders + 14 * BASE_DEVIATION], [1]]))
    else:
        # So wide, the sum over a bin is the integral, to 1e-7 of it.
        borders = np.rint(stats.norm.ppf(np.arange(1, bins) / bins) * deviation).astype(np.int64)
        expected = np.diff(np.concatenate([[0], stats.norm.cdf((borders + 0.5) / deviation), [1]]))
    found = np.bincount(np.searchsorted(borders, drawn, side="left"), minlength=len(borders) + 1)
    assert stats.chisquare(found, expected * count).pvalue > NEVER


@pytest.mark.parametrize("level", [1, 2, 3])
def test_every_last_digit_of_a_draw_is_as_likely_as_the_other(level):
    # What a coarse sampler gets wrong: the values within a step of its grid.
    found = np.bincount(discrete_gaussian(200_000, level) % 32, minlength=32)
    assert stats.chisquare(found).pvalue > NEVER


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_moments_are_those_that_are_accounted(level):
    count = 200_000
    deviation = Grid(1.0, level, 1.0).deviation
    scaled = discrete_gaussian(count, level) / deviation
    spread = stats.norm.isf(NEVER / 2)
    assert abs(scaled.mean()) < spread / math.sqrt(count)
    assert abs(scaled.var() - 1) < spread * math.sqrt(2 / count)
    assert abs((scaled**4).mean() - 3) < spread * math.sqrt(96 / count)


def test_the_table_is_the_distribution_to_a_128th_bit():
    table = noise._table()
    # Independently of its recurrence: ratios of neighbours from the definition, in Fractions.
    total = 1 << 128
    masses = [b - a for a, b in zip([0, *table.exact], [*table.exact, total], strict=True)]
    middle = table.radius
    for k in (0, 1, 500, 2000, 5000):
        ratio = Fraction(masses[middle + k + 1], masses[middle + k])
        expected = math.exp(-(2 * k + 1) / (2 * BASE_DEVIATION**2))
        assert float(ratio) == pytest.approx(expected, rel=1e-13)
    assert (
        masses == masses[::-1]
        or max(abs(a - b) for a, b in zip(masses, masses[::-1], strict=True)) <= 2
    )
    assert sum(masses) == total


def test_the_guide_decides_as_all_128_bits_would(monkeypatch):
    table = noise._table()
    chosen = np.random.default_rng(5).integers(0, 1 << 64, 40_000, dtype=np.uint64)
    # Also words beside, on and just before the borders.
    borders = table.high[::97]
    words = np.concatenate([chosen, borders, borders - 1, borders + 1])
    second = 1 << 63

    def bits(count, kind):
        if kind is np.uint16:
            return (words >> np.uint64(48)).astype(np.uint16)
        if count == 1 and kind is np.uint64:
            return np.array([second], dtype=np.uint64)
        unsure = np.flatnonzero(table.guide[(words >> np.uint64(48)).astype(np.uint16)] < 0)
        assert count == len(unsure)
        return words[unsure] << np.uint64(16)

    monkeypatch.setattr(noise, "random_bits", bits)
    drawn = noise._base_draws(len(words))
    exact = np.array(table.exact, dtype=object)
    full = [(int(word) << 64) | second for word in words]
    expected = np.searchsorted(exact, np.array(full, dtype=object), side="right") - table.radius
    assert (drawn == np.minimum(expected, table.radius)).all()


def test_no_more_is_lost_than_with_the_continuous_gaussian():
    # The hockey-stick divergence of the discrete Gaussian from itself moved by its sensitivity,
    # from its own probabilities, against the continuous one's (Balle and Wang 2018, theorem 8),
    # on the coarsest grid and with all of the difference in one value: the worst case.
    for multiplier in (0.5, 1.0, 4.0):
        shift = round(BASE_DEVIATION / multiplier)
        values, pmf = exact_pmf(BASE_DEVIATION, 14 * BASE_DEVIATION)
        moved = exact_pmf(BASE_DEVIATION, 14 * BASE_DEVIATION + shift)[1][2 * shift :]
        for epsilon in (0.5, 2.0, 6.0):
            delta = np.maximum(pmf - math.exp(epsilon) * moved[: len(pmf)], 0).sum()
            ratio = shift / BASE_DEVIATION
            gauss = stats.norm.cdf(ratio / 2 - epsilon / ratio) - math.exp(epsilon) * (
                stats.norm.cdf(-ratio / 2 - epsilon / ratio)
            )
            assert delta <= gauss * (1 + 1e-4) + 1e-14
        assert len(values) == len(pmf)


@given(
    st.floats(1e-6, 1e6),
    st.integers(1, 10**8),
    st.floats(1e-2, 1e3),
)
def test_noise_is_the_multiplier_times_a_sensitivity_that_holds_the_rounding(
    bound, dimensions, multiplier
):
    grid = make_grid(bound, dimensions, multiplier)
    rounding = grid.step * math.sqrt(dimensions)
    assert grid.deviation == pytest.approx(multiplier * grid.sensitivity, rel=1e-12)
    assert grid.sensitivity >= (bound * (1 + SUMMING) + rounding) * (1 - 1e-12)
    # And no more than needed: the price of the grid stays within its limit.
    assert grid.sensitivity <= bound * (1 + SUMMING) / (1 - LARGEST_INFLATION) * (1 + 1e-12)


def test_a_grid_too_coarse_is_refused():
    with pytest.raises(ConfigurationError, match="too much"):
        make_grid(1.0, 10**8, 1e6)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), st.floats(0.1, 10))
def test_what_is_released_lies_on_the_grid(values, multiplier):
    grid = make_grid(1.0, len(values), multiplier)
    noisy = release(np.array(values), grid)
    points = noisy / grid.step
    assert noisy.shape == (len(values),)
    assert np.abs(points - np.rint(points)).max() <= 1e-6 * max(1, np.abs(points).max() * 1e-9)
    assert (np.rint(points) * grid.step == noisy).all()


def test_large_and_huge_values_keep_their_place_and_their_noise():
    grid = make_grid(1.0, 4, 1.0)
    values = np.array([0.0, 1.0, 1e6, -1e9])
    noisy = release(values, grid)
    assert (np.abs(noisy - values) < 10 * grid.deviation + 1e-3).all()
    assert (noisy != values).any()


def test_shape_and_pieces_do_not_matter():
    grid = make_grid(1.0, 200_000, 1.0)
    noisy = release(np.zeros((2, 100_000)), grid)
    assert noisy.shape == (2, 100_000)
    assert noisy.std() == pytest.approx(grid.deviation, rel=0.02)
    assert release(np.zeros(0), grid).shape == (0,)
    # No piece repeats another.
    assert len(np.unique(noisy[0, :65536] - noisy[1, :65536])) > 60_000


def test_two_releases_of_one_value_differ():
    grid = make_grid(1.0, 100, 1.0)
    assert (release(np.zeros(100), grid) != release(np.zeros(100), grid)).any()
