"""Rules that need every reply: what they withstand, and what memory they take."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvc_core.protocol.settings import FederationSettings
from fieldmark.server.strategies import Aggregation, SoundReply, make_strategy
from fieldmark.server.strategies.distances import (
    geometric_median,
    gram_matrix,
    nearest_shares,
    weighted_sum,
)
from fieldmark.server.strategies.spill import Spill

ROBUST = [
    *("fedmedian", "trimmed-mean", "krum", "multi-krum", "geometric-median", "least-trimmed"),
]


def aggregate(name, arrays, weights=None, refused=0, **changes):
    strategy = make_strategy(FederationSettings(strategy=name, **changes))
    weights = weights or [1] * len(arrays)
    stream = (SoundReply(str(i), w, {"w": a})
              for i, (a, w) in enumerate(zip(arrays, weights, strict=True)))  # fmt: skip
    return strategy.aggregate(stream, Aggregation(1, {}, rejected=lambda: refused))["w"]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", ROBUST)
@given(st.integers(0, 1000), st.floats(10, 1e6), st.permutations(range(10)))
@settings(max_examples=15, deadline=None)
def test_two_of_ten_sites_cannot_move_the_model_far(name, mixed, seed, size, order):
    generator = np.random.default_rng(seed)
    honest = [generator.normal(1, 0.1, 50).astype(np.float32) for _ in range(8)]
    hostile = [np.full(50, -size, np.float32)] * 2
    replies = honest + hostile
    # A claimed weight buys a hostile site nothing.
    weights = [1] * 8 + [10_000] * 2
    at = [replies[i] for i in order], [weights[i] for i in order]
    found = aggregate(name, *at, byzantine_share=0.2, mix_nearest=mixed)
    assert np.abs(found - 1).max() < 0.5


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", ROBUST)
def test_blocks_meet_without_a_seam_and_equal_updates_give_themselves(name, mixed):
    generator = np.random.default_rng(0)
    array = generator.standard_normal(30_001, dtype=np.float32)
    found = aggregate(name, [array] * 6, spill_mb=1.0, mix_nearest=mixed)
    np.testing.assert_array_equal(found, array)
    many = [array + n * np.float32(0.01) for n in range(6)]
    one, two = (aggregate(name, many, spill_mb=mb, mix_nearest=mixed) for mb in (1.0, 100.0))
    np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "mixed"),
    [
        *(("fedmedian", False), ("krum", False), ("geometric-median", False)),
        *(("fedmedian", True), ("least-trimmed", False)),
    ],
)
def test_memory_does_not_grow_with_the_number_of_replies(name, mixed):
    values = 200_000

    def peak(count):
        generator = np.random.default_rng(0)
        arrays = (generator.standard_normal(values, dtype=np.float32) for _ in range(count))
        strategy = make_strategy(FederationSettings(strategy=name, spill_mb=2.0, mix_nearest=mixed))
        tracemalloc.start()
        stream = (SoundReply(str(i), 1, {"w": a}) for i, a in enumerate(arrays))
        strategy.aggregate(stream, Aggregation(1, {}))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    update = 4 * values
    assert peak(40) < peak(10) + 1.5e6
    assert peak(40) < 5 * update + 2e6


def test_the_geometric_median_is_where_no_step_makes_the_distances_smaller():
    generator = np.random.default_rng(3)
    points = [generator.normal(0, 1, 6).astype(np.float32) for _ in range(7)]
    with Spill(None, 1.0) as spill:
        for point in points:
            spill.add({"w": point}, 1)
        found = weighted_sum(spill, geometric_median(gram_matrix(spill)))

    def total(point):
        return sum(np.linalg.norm(point - p) for p in points)

    best = total(found)
    for _ in range(200):
        assert total(found + generator.normal(0, 0.01, 6)) >= best - 1e-5


def test_a_reply_is_mixed_with_those_nearest_to_it_and_itself():
    points = [0.0, 1.0, 2.5, 10.0, 11.0]
    distances_SS = np.subtract.outer(points, points) ** 2
    shares_SS = nearest_shares(distances_SS, 2)
    assert (shares_SS * 3).round().tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 1],
    ]
    # Equal replies are at no distance from each other: each still counts itself.
    assert np.diag(nearest_shares(np.zeros((4, 4)), 3)).tolist() == [1, 1, 1, 1]


def test_where_sites_differ_mixing_keeps_hostile_ones_who_agree_from_being_preferred():
    generator = np.random.default_rng(2)
    honest = [generator.normal(0, 1, 400).astype(np.float32) for _ in range(12)]
    spread = np.std(honest, axis=0)
    # Within the honest spread, and all alike: closer to every honest one than those to each other.
    hostile = [np.mean(honest, axis=0) + np.float32(0.6) * spread] * 3
    centre = np.mean(honest, axis=0)

    def off(**changes):
        found = aggregate("geometric-median", honest + hostile, byzantine_share=0.2, **changes)
        return np.linalg.norm(found - centre)

    assert off(mix_nearest=True) < 0.7 * off()


@pytest.mark.parametrize(
    ("share", "count", "refused", "left"),
    [(0.3, 14, 0, 4), (0.3, 10, 4, 0), (0.3, 12, 2, 2), (0.2, 10, 5, 0), (0.0, 10, 0, 0)],
)
def test_who_was_found_out_is_not_guarded_against_once_more(share, count, refused, left):
    strategy = make_strategy(FederationSettings(strategy="multi-krum", byzantine_share=share))
    assert strategy.hostile(count, refused) == left


@pytest.mark.parametrize("name", ["trimmed-mean", "multi-krum"])
def test_once_the_hostile_are_found_out_every_honest_reply_counts(name):
    generator = np.random.default_rng(3)
    honest = [generator.normal(0, 1, 50).astype(np.float32) for _ in range(8)]
    found = aggregate(name, honest, refused=3, byzantine_share=0.3)
    np.testing.assert_allclose(found, np.mean(honest, axis=0), atol=1e-6)


def test_a_spilled_file_leaves_no_name_behind(tmp_path):
    with Spill(tmp_path, 1.0) as spill:
        spill.add({"b": np.ones(3, np.float32), "a": np.zeros((2, 2), np.float32)}, 2)
        assert list(tmp_path.iterdir()) == []
        (_, block_VS), = spill.blocks()  # fmt: skip
        assert block_VS[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1]
        back = spill.tensors(block_VS[:, 0])
    assert back["a"].shape == (2, 2)
    assert back["b"].tolist() == [1, 1, 1]
