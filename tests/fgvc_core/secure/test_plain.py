"""Weighed updates in whole steps: what a sum gives back, how exactly, and what no sum can be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_lab import ReadySite, names, view_of

from fgvc_core.errors import DataError, PeerError
from fgvc_core.secure.part import masked_part, opened
from fgvc_core.secure.plain import (
    FIGURES,
    SCORES,
    Figures,
    exact_scale,
    read_scores,
    read_update,
    scores_as_value,
    size_of_update,
    update_as_value,
)
from fgvc_core.secure.ring import MOST_WIDE
from fgvc_core.wire.arrays import spec_of

SHAPES = {"b.bias": (3,), "a.weight": (2, 4), "c.scale": ()}


def model(seed, spread=0.3):
    draw = np.random.default_rng(seed)
    return {n: np.asarray(draw.normal(scale=spread, size=s), np.float32) for n, s in SHAPES.items()}


def summed(values):
    """The opened sum of sites' values, under real masks."""
    sites = [ReadySite(name) for name in names(len(values))]
    scale = exact_scale(values[0].size)
    parts = [
        masked_part(value, scale, view_of(sites, site), site.name, site.secret, site.noise)
        for value, site in zip(values, sites, strict=True)
    ]
    return opened(parts, scale, values[0].size)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 10_000), min_size=3, max_size=6), st.integers(0, 99))
def test_the_sum_is_the_weighed_mean_to_its_rounding_and_the_counts_are_exact(examples, seed):
    sent = model(seed)
    trained = [model(seed + 1 + at) for at in range(len(examples))]
    told = [
        Figures(n / 10_000, n / 10_000 * 2.5, examples=n, correct=n // 2, loss_sum=n * 1.25)
        for n in examples
    ]
    pairs = zip(trained, told, strict=True)
    values = summed([update_as_value(sent, new, figures, 4.0) for new, figures in pairs])
    mean, figures = read_update(values, sent, 4.0, len(examples))
    for name in SHAPES:
        exact = np.average([new[name].astype(float) for new in trained], axis=0, weights=examples)
        # Half a step of 9e-17 of each site over a weight of 3e-4 at least; float32 rounds more.
        assert np.allclose(mean[name], exact, rtol=0, atol=3e-7)
        assert mean[name].shape == SHAPES[name]
        assert mean[name].dtype == np.float32
    assert figures.weight == pytest.approx(sum(examples) / 10_000, rel=1e-12)
    assert figures.loss / figures.weight == pytest.approx(2.5, rel=1e-9)
    assert (figures.examples, figures.cut) == (sum(examples), 0)
    assert figures.correct == sum(n // 2 for n in examples)
    assert figures.loss_sum == sum(n * 1.25 for n in examples)


def test_a_large_update_travels_in_32_bits_within_half_a_step_of_each_site():
    size = MOST_WIDE + 1
    assert exact_scale(size + FIGURES).bits == 32
    step = exact_scale(size).step
    assert step == pytest.approx(1 / 21_474_836, rel=1e-9)
    sent = {"w": np.zeros(size, np.float32)}
    draw = np.random.default_rng(0)
    trained = [draw.uniform(-0.9, 0.9, size).astype(np.float32) for _ in range(3)]
    values = summed([update_as_value(sent, {"w": new}, Figures(0.1), 1.0) for new in trained])
    mean, figures = read_update(values, sent, 1.0, 3)
    exact = np.mean([new.astype(float) for new in trained], axis=0)
    assert np.abs(mean["w"] - exact).max() <= 3 * step / 2 / 0.3 + 1e-7
    assert figures.weight == pytest.approx(0.3, abs=3 * step)


def test_changes_beyond_the_range_are_cut_and_counted():
    sent, new = model(0), model(0)
    new["a.weight"] = new["a.weight"] + np.float32(5.0)
    new["b.bias"] = new["b.bias"] - np.float32(0.25)
    values = summed([update_as_value(sent, new, Figures(1.0), 0.5)] * 3)
    mean, figures = read_update(values, sent, 0.5, 3)
    assert np.allclose(mean["a.weight"], sent["a.weight"] + 0.5, atol=1e-6)
    assert np.allclose(mean["b.bias"], sent["b.bias"] - 0.25, atol=1e-6)
    assert figures.cut == 3 * 8


def test_the_size_is_known_before_the_work():
    sent = model(1)
    specs = {name: spec_of(array) for name, array in sent.items()}
    value = update_as_value(sent, sent, Figures(0.5), 1.0)
    assert len(value) == size_of_update(specs) == 12 + FIGURES
    assert np.abs(value).max() <= 1.0
    assert len(scores_as_value(Figures(examples=3), 1e-9)) == SCORES


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_training_that_is_not_finite_does_not_leave(bad):
    new = model(2)
    new["b.bias"][1] = bad
    with pytest.raises(DataError, match=r"'b\.bias' not finite"):
        update_as_value(model(2), new, Figures(0.5), 1.0)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (-6, 0.0, "weigh 0 together"),
        (-6, 3.5, "weigh 3.5 together"),
        (-6, -0.5, "weigh -0.5 together"),
        (2, 1.6, "changed by"),
        (2, -1.6, "changed by"),
        (-2, 1.0, "are right"),
        (-3, -1.0, "are right"),
    ],
    ids=["no weight", "too heavy", "negative", "far", "far back", "right", "less than none"],
)
def test_a_sum_that_no_honest_sites_have_is_refused(at, value, said):
    sent = model(3)
    honest = update_as_value(sent, model(4), Figures(0.5, examples=4, correct=2), 4.0)
    values = summed([honest] * 3)
    assert read_update(values, sent, 4.0, 3)[1].correct == 6
    values[at] = value
    with pytest.raises(PeerError, match=said):
        read_update(values, sent, 4.0, 3)


def test_scores_alone_are_read_back_exactly():
    step = exact_scale(SCORES).step
    figures = Figures(examples=1_000_003, correct=999_999, loss_sum=12.5)
    total = summed([scores_as_value(figures, step)] * 3)
    assert read_scores(total, step, 3) == (3_000_009, 2_999_997, 37.5)
    with pytest.raises(PeerError, match="are right"):
        read_scores(-total, step, 3)
