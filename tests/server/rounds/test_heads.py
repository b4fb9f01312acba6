"""One lying site's class statistics: what cannot be is left out and named, the rest has a bound."""

import numpy as np
import pytest

from fgvc_core.models.class_statistics import (
    COUNTS,
    SCATTER,
    SUMS,
    class_statistics,
    pack_statistics,
)
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.start import started
from fieldmark.server.rounds.heads import FederatedStart
from fieldmark.server.strategies import SoundReply

CLASSES, DIM, PICTURES = 5, 12, 60
SITES = [f"site-{n}" for n in range(5)]
LIAR = "site-2"
MEANS_KD = np.random.default_rng(99).normal(size=(CLASSES, DIM)) + 1.0
TENSORS = {
    "head.weight": np.zeros((CLASSES, DIM), np.float32),
    "head.bias": np.zeros(CLASSES, np.float32),
}


def recipe(start="lda", *changes):
    made = (f"train.start={start}", "federation.rounds=0", "model.head=linear")
    return parse_recipe("[model]\ntrain='head'", [*made, *changes])


def honest(site, start="lda", pictures=PICTURES, classes=CLASSES):
    draw = np.random.default_rng(SITES.index(site))
    labels_N = draw.integers(0, classes, pictures)
    vectors_ND = MEANS_KD[labels_N] + 0.5 * draw.normal(size=(pictures, DIM))
    found = class_statistics(vectors_ND.astype(np.float32), labels_N, CLASSES, start == "lda")
    return SoundReply(site, pictures, pack_statistics(found))


class Told:
    def __init__(self):
        self.events = []

    def emit(self, event, **values):
        self.events.append((event, values))


def run(replies, start="lda", **more):
    made = recipe(start)
    found = FederatedStart(made, TENSORS, **more)
    (total,) = found.gather(iter(replies))
    return found, started(TENSORS, total, made.train), len(found.taken)


def signed(reply, value):
    """Sums of alternating sign and any length, one picture a class, their own scatter."""
    sums_KD = np.where(np.arange(CLASSES * DIM).reshape(CLASSES, DIM) % 2, value, -value)
    labels_N = np.arange(CLASSES)
    found = class_statistics(
        sums_KD.astype(np.float32), labels_N, CLASSES, SCATTER in reply.tensors
    )
    return SoundReply(reply.site, CLASSES, pack_statistics(found))


def millions(reply):
    factor = 1e6 / reply.tensors[COUNTS][:, None]
    tensors = {**reply.tensors, COUNTS: np.full(CLASSES, 1e6, np.float32)}
    return SoundReply(reply.site, reply.weight, {**tensors, SUMS: reply.tensors[SUMS] * factor})


def counted(reply, times):
    tensors = {name: (times * array).astype(np.float32) for name, array in reply.tensors.items()}
    return SoundReply(reply.site, times * reply.weight, tensors)


def changed(reply, **changes):
    return SoundReply(reply.site, reply.weight, {**reply.tensors, **changes})


def apart(reply):
    """An honest diagonal, all else of the scatter free."""
    scatter = np.full_like(reply.tensors[SCATTER], 1e15)
    diagonal = [i * DIM - i * (i - 1) // 2 for i in range(DIM)]
    scatter[diagonal] = reply.tensors[SCATTER][diagonal]
    return changed(reply, **{SCATTER: scatter})


def of_no_picture(reply):
    """No picture, so nothing to compare; a scatter that outweighs every other."""
    nothing = {name: 0 * array for name, array in reply.tensors.items()}
    scatter = nothing[SCATTER].copy()
    scatter[[i * DIM - i * (i - 1) // 2 for i in range(DIM)]] = 1e9
    return SoundReply(reply.site, 0, {**nothing, SCATTER: scatter})


def one_long(reply):
    """One class of one picture far out, hidden among many of honest length."""
    sums_KD = reply.tensors[SUMS].copy()
    sums_KD[0] = 6 * sums_KD[0] / np.linalg.norm(sums_KD[0]) * np.linalg.norm(MEANS_KD[0])
    counts_K = reply.tensors[COUNTS].copy()
    counts_K[0] = 1
    counts_K[1] += reply.weight - counts_K.sum()
    return changed(reply, **{SUMS: sums_KD, COUNTS: counts_K})


LIES = [
    ("lda", lambda r: signed(r, 1e15), "above"),
    ("means", lambda r: signed(r, 1e15), "above"),
    ("means", millions, "the reply claims 60"),
    ("means", lambda r: counted(r, 30), "max_weight_ratio"),
    ("lda", lambda r: counted(r, 30), "max_weight_ratio"),
    ("lda", apart, "of no vectors"),
    ("lda", of_no_picture, "no picture"),
    ("means", one_long, "above"),
    ("means", lambda r: changed(r, **{SUMS: -r.tensors[SUMS]}), "points against"),
    ("lda", lambda r: changed(r, **{SUMS: -r.tensors[SUMS]}), "points against"),
    ("lda", lambda r: changed(r, **{n: 0 * r.tensors[n] for n in (SUMS, SCATTER)}), "below"),
]  # fmt: skip


@pytest.mark.parametrize(("start", "lie", "said"), LIES)
def test_statistics_that_cannot_be_are_left_out_and_the_head_is_the_others(start, lie, said):
    replies = [honest(site, start) for site in SITES]
    lied = [lie(r) if r.site == LIAR else r for r in replies]
    found, tensors, count = run(lied, start)
    assert list(found.refused) == [LIAR]
    assert said in found.refused[LIAR]
    assert count == 4
    _, expected, _ = run([r for r in replies if r.site != LIAR], start)
    assert [n for n in TENSORS if tensors[n].tobytes() != expected[n].tobytes()] == []


@pytest.mark.parametrize("start", ["lda", "means"])
def test_values_that_make_no_finite_head_are_left_out_also_where_none_are_compared(start):
    replies = [honest(SITES[0], start), signed(honest(LIAR, start), 3e18)]
    found, tensors, count = run(replies, start)
    assert "for each of 12 values" in found.refused[LIAR]
    assert (list(found.refused), count) == ([LIAR], 1)
    assert all(np.isfinite(array).all() for array in tensors.values())


@pytest.mark.parametrize("start", ["lda", "means"])
def test_two_liars_of_five_do_not_turn_the_median_against_the_others(start):
    replies = [honest(site, start) for site in SITES]
    found, _, count = run([signed(r, 1e6) if r.site in SITES[:2] else r for r in replies], start)
    assert sorted(found.refused) == SITES[:2]
    assert count == 3


@pytest.mark.parametrize("start", ["lda", "means"])
@pytest.mark.parametrize(
    "sizes", [[60] * 5, [3, 60, 12, 90, 30], [1, 2, 1, 15, 9], [0, 9, 9, 9, 9]]
)
def test_honest_sites_of_any_size_and_few_classes_are_all_taken(start, sizes):
    replies = [
        honest(site, start, size, 1 + n)
        for n, (site, size) in enumerate(zip(SITES, sizes, strict=True))
    ]
    found, _, count = run(replies, start)
    assert (found.refused, count) == ({}, 5)


def test_no_site_counts_for_more_than_its_share_nor_its_first_claim():
    told = Told()
    replies = [honest(site, "means") for site in SITES[:2]] + [counted(honest(LIAR, "means"), 10)]
    found, tensors, _ = run(replies, "means", share=0.5, events=told)
    assert found.refused == {}
    ((event, values),) = told.events
    assert (event, values["site"], values["weight"]) == ("weight_cut", LIAR, 120)
    # Six hundred pictures count as a hundred and twenty: as if each counted a fifth.
    _, expected, _ = run([*replies[:2], counted(honest(LIAR, "means"), 2)], "means")
    np.testing.assert_allclose(
        tensors["head.weight"], expected["head.weight"], rtol=1e-5, atol=1e-6
    )
    _, claimed, _ = run(replies, "means", events=told, claims={LIAR: 120})
    np.testing.assert_array_equal(claimed["head.weight"], tensors["head.weight"])
