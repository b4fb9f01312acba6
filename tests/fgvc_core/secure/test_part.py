"""Masked parts: the sum is that of the set to the bit, and nothing less than all opens it."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_lab import ReadySite, names, values_of, view_of

from fgvc_core.privacy.noise import make_grid
from fgvc_core.secure.part import Scale, masked_part, opened
from fgvc_core.secure.ring import most_steps, to_steps

SIZE = 50


def parts_of(sites, values, scale, view=None):
    view = view or view_of(sites)
    return {
        site.name: masked_part(value, scale, view, site.name, site.secret, site.noise)
        for site, value in zip(sites, values, strict=True)
    }


PLAIN = Scale(2.0**-20, 0, 64)


@pytest.mark.parametrize("count", [3, 4, 5, 10, 31, 100])
@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_is_that_of_the_set_to_the_bit(count, bits):
    sites, values = [ReadySite(name) for name in names(count)], values_of(count, SIZE)
    scale = Scale(PLAIN.step, 0, bits)
    found = opened(parts_of(sites, values, scale).values(), scale, SIZE)
    steps = [to_steps(v, scale.step, most_steps(bits, 0)) for v in values]
    assert np.array_equal(found, np.sum(steps, axis=0) * scale.step)


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 11), min_size=3))
def test_any_set_of_ready_sites_opens_its_own_sum(chosen):
    everybody = [ReadySite(name) for name in names(12)]
    values = values_of(12, 4)
    sites = [everybody[at] for at in sorted(chosen)]
    own = [values[at] for at in sorted(chosen)]
    found = opened(parts_of(sites, own, PLAIN).values(), PLAIN, 4)
    assert np.allclose(found, np.sum(own, axis=0), atol=12 * PLAIN.step)


def test_no_proper_subset_of_the_answers_is_a_sum_of_values():
    """Five sites, exhaustively, signs included: a sum that lacks an answer keeps its masks."""
    sites = [ReadySite(name) for name in names(5)]
    values = values_of(5, 200)
    parts = parts_of(sites, values, PLAIN)
    bound = 5 * 20 / PLAIN.step
    for size in range(1, 5):
        for chosen in combinations(parts, size):
            total = sum((parts[name] for name in chosen), np.zeros(200, np.uint64))
            # Words of a masked sum are uniform: none is near a value's few bits.
            assert (np.abs(total.view(np.int64).astype(float)) < bound).mean() < 0.05
    total = sum(parts.values(), np.zeros(200, np.uint64))
    assert (np.abs(total.view(np.int64).astype(float)) < bound).all()


def test_colluders_see_the_sum_of_the_others_and_nothing_else():
    """They take off their own masks; between two honest sites masks stay."""
    sites, values = [ReadySite(name) for name in names(5)], values_of(5, 200)
    parts = parts_of(sites, values, PLAIN)
    view = view_of(sites)
    for colluding in range(1, 4):
        known = sites[:colluding]
        rest = [site.name for site in sites[colluding:]]
        # What they can take off an honest answer: the masks that they share with it.
        bare = {}
        for name in rest:
            words = parts[name].copy()
            for own in known:
                zero = np.zeros_like(words)
                seeds = {name: _seed(own, name, view)}
                from fgvc_core.secure.masks import add_masks

                words += add_masks(zero, own.name, seeds)
            bare[name] = words
        total = sum(bare.values(), np.zeros(200, np.uint64)).view(np.int64) * PLAIN.step
        assert np.allclose(total, values[colluding:].sum(axis=0), atol=1e-4)
        for size in range(1, len(rest)):
            for chosen in combinations(rest, size):
                words = sum((bare[name] for name in chosen), np.zeros(200, np.uint64))
                assert np.abs(words.view(np.int64).astype(float)).mean() > 2**60


def _seed(site, other, view):
    from fgvc_core.secure.masks import pair_seed

    return pair_seed(site.secret, site.name, view.keys(site.name)[other], other, view.digest)


def test_equal_values_have_independent_bytes_across_sites_views_and_keys():
    values = np.zeros((4, 4000))
    sites = [ReadySite(name) for name in names(4)]
    once = parts_of(sites, values, PLAIN)
    fewer = parts_of(sites[:3], values[:3], PLAIN)
    renewed = parts_of([ReadySite(name) for name in names(4)], values, PLAIN)
    found = [*once.values(), *fewer.values(), *renewed.values()]
    for one, other in combinations(found, 2):
        # Three sites' parts sum to zero; any two of them share no word.
        assert not (one == other).any()
        assert not (one == -other).any()


def test_the_same_view_gets_the_same_bytes_and_the_same_noise():
    sites, values = [ReadySite(name) for name in names(3)], values_of(3, SIZE)
    scale = Scale.of_noise(1.0, SIZE, 2.0, 2)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(
            parts_of(sites, values, scale).values(),
            parts_of(sites, values, scale).values(),
            strict=True,
        )
    )


@pytest.mark.parametrize(("size", "colluding"), [(3, 1), (5, 1), (10, 2), (20, 4)])
def test_the_noise_of_the_honest_alone_is_the_full_noise(size, colluding):
    """At the worst t: those who collude have added none."""
    sites, dims, noise = [ReadySite(name) for name in names(size)], 4000, 3.0
    scale = Scale.of_noise(1.0, dims, noise, size - colluding)
    values = np.zeros((size, dims))
    view = view_of(sites)
    parts = parts_of(sites, values, scale, view)
    silent = parts_of(sites, values, Scale(scale.step, 0, scale.bits), view)
    honest = list(parts.values())[colluding:] + list(silent.values())[:colluding]
    found = opened(honest, scale, dims)
    wanted = noise * make_grid(1.0, dims, noise, size - colluding).sensitivity
    # Six deviations of the estimate of a deviation.
    assert abs(found.std() / wanted - 1) < 6 / np.sqrt(2 * dims)
    whole = opened(parts.values(), scale, dims).std()
    assert whole >= wanted * 0.95
    assert abs(found.mean()) < 6 * wanted / np.sqrt(dims)


@pytest.mark.parametrize("sharers", [1, 2, 8, 98])
def test_a_share_of_the_noise_is_a_finer_grid(sharers):
    whole, part = make_grid(1.5, 2950, 4.0), make_grid(1.5, 2950, 4.0, sharers)
    assert part.deviation * np.sqrt(sharers) == pytest.approx(4.0 * part.sensitivity)
    # Rounding counts once, on a finer grid.
    assert part.sensitivity <= whole.sensitivity
    if sharers == 1:
        assert part == whole
