"""The mean of those that lie closest together, in principal directions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.server.strategies import least_trimmed as rule
from fieldmark.server.strategies.spill import Spill


def combined(arrays, left_out, limit_mb=64.0):
    with Spill(None, limit_mb) as spill:
        for array in arrays:
            spill.add({"w": array.astype(np.float32)}, 1)
        shape = arrays[0].shape
        return rule.combined(spill, left_out, limit_mb).reshape(shape)


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=8),
    st.integers(0, 3),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_it_is_the_mean_of_the_subset_with_the_least_variance(values, left_out, far):
    left_out = min(left_out, len(values) - 1)
    values = [*values[:-1], 1e6] if far else values
    found = rule.least_trimmed(np.array(values)[:, None], left_out)[0]
    subsets = itertools.combinations(values, len(values) - left_out)
    spreads = [(np.mean(s), np.square(np.array(s) - np.mean(s)).sum()) for s in subsets]
    # Of several with one variance any will do.
    least = min(spread for _, spread in spreads)
    chosen = [m for m, spread in spreads if spread <= least + 1e-9 * (1 + least)]
    assert min(abs(found - m) for m in chosen) < 1e-6 * max(1, *(abs(m) for m in chosen))


def test_with_nobody_to_leave_out_it_is_the_mean():
    generator = np.random.default_rng(0)
    arrays = [generator.normal(3, 1, (4, 30)) for _ in range(6)]
    np.testing.assert_allclose(combined(arrays, 0), np.mean(arrays, axis=0), atol=1e-5)


@pytest.mark.parametrize(("sites", "hostile"), [(5, 1), (20, 4)])
def test_a_push_that_no_value_shows_is_left_out_and_other_rules_let_it_pass(sites, hostile):
    generator = np.random.default_rng(2)
    columns, rows, rounds = 100, 12, 20
    # What honest sites differ in is a few directions, as gradients of pictures do; the push
    # lies in another one.
    turn_DD = np.linalg.qr(generator.normal(size=(columns, columns)))[0]
    spectrum_D = np.concatenate([np.full(10, 1.0), np.full(columns - 10, 0.02)])
    direction_D = turn_DD[columns // 2]
    moved = {"mean": 0.0, "trimmed mean": 0.0, "rule": 0.0}
    for _ in range(rounds):
        arrays = [
            1 + generator.normal(size=(rows, columns)) * spectrum_D @ turn_DD for _ in range(sites)
        ]
        honest = np.mean(arrays[hostile:], axis=0)
        for pushed in arrays[:hostile]:
            pushed[0] += 2.0 * direction_D
        assert 2 * np.abs(direction_D).mean() < 0.8 * np.std(arrays[hostile:], axis=0).mean()
        found = {
            "mean": np.mean(arrays, axis=0),
            "trimmed mean": np.sort(arrays, axis=0)[hostile:-hostile].mean(axis=0),
            "rule": combined(arrays, hostile),
        }
        for name, aggregate in found.items():
            moved[name] += float((aggregate - honest)[0] @ direction_D) / rounds
    assert moved["mean"] > 0.35
    assert moved["trimmed mean"] > 0.3
    assert abs(moved["rule"]) < 0.12


def test_one_far_away_does_not_drown_what_the_others_say():
    generator = np.random.default_rng(5)
    arrays = [generator.normal(1, 0.1, (4, 30)) for _ in range(6)]
    arrays[3] = np.full((4, 30), -1e6)
    found = combined(arrays, 1)
    honest = np.mean(arrays[:3] + arrays[4:], axis=0)
    assert np.abs(found - honest).max() < 0.25


def test_rows_in_chunks_and_both_ways_to_the_directions_agree(monkeypatch):
    generator = np.random.default_rng(3)
    arrays = [generator.normal(0, np.linspace(2, 0.2, 40), (6, 40)) for _ in range(5)]
    # 30 differences of 40 columns: the small product; row by row: the large one.
    whole, rows = combined(arrays, 1, 64.0), combined(arrays, 1, 0.02)
    np.testing.assert_allclose(whole, rows, atol=1e-4)
    # A convolution's kernel is a row of all its other axes.
    kernels = [a.reshape(6, 10, 2, 2) for a in arrays]
    np.testing.assert_array_equal(combined(kernels, 1).reshape(6, 40), whole)
    # Wider rows are cut, and each part is what it is by itself.
    monkeypatch.setattr(rule, "WIDEST", 25)
    parts = [combined([a[:, p] for a in arrays], 1) for p in (slice(0, 25), slice(25, 40))]
    np.testing.assert_allclose(combined(arrays, 1), np.concatenate(parts, axis=1), atol=1e-5)


def test_several_tensors_of_any_shape_come_back_in_their_places():
    generator = np.random.default_rng(4)
    replies = [
        {"a": generator.normal(5, 0.1, (3, 4)), "b": generator.normal(-2, 0.1, 7),
         "c": np.array(float(n)), "d": np.zeros((0, 3))}
        for n in range(4)
    ]  # fmt: skip
    with Spill(None, 8.0) as spill:
        for reply in replies:
            spill.add({n: np.float32(a) for n, a in reply.items()}, 1)
        found = spill.tensors(rule.combined(spill, 0, 8.0))
    assert {n: a.shape for n, a in found.items()} == {"a": (3, 4), "b": (7,), "c": (), "d": (0, 3)}
    for name in ("a", "b", "c"):
        np.testing.assert_allclose(
            found[name], np.mean([r[name] for r in replies], axis=0), atol=1e-5
        )
