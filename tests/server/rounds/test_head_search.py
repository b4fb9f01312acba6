"""A federation asked about heads: who lies or is silent is left out and named."""

from types import SimpleNamespace

import numpy as np
import pytest

from fgvc_core.errors import RunFailed
from fgvc_core.models.class_statistics import added, class_statistics
from fgvc_core.models.head_stack import (
    ALL,
    BIAS_GRADIENT,
    COUNTS,
    GRADIENT,
    LOSS,
    read_stack,
    site_counts,
    site_gradients,
)
from fgvc_core.protocol.stages import GRADIENTS
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.head_search import Pooled, best_head, regression_head
from fieldmark.server.rounds import head_search
from fieldmark.server.rounds.head_search import AskedSites
from fieldmark.server.screening.heads import SiteFolds
from fieldmark.server.strategies import SoundReply

CLASSES, DIM, FOLDS = 4, 10, 3
SITES = [f"site-{n}" for n in range(5)]
LIAR = "site-2"
MEANS_KD = np.random.default_rng(9).normal(size=(CLASSES, DIM)) + 1.0
RECIPE = parse_recipe(
    "[model]\ntrain='head'", ["train.start=auto", "train.start_precision=1e-9", "model.head=linear"]
)


def pictures(site):
    draw = np.random.default_rng(SITES.index(site))
    # Every site lacks a class.
    labels_N = draw.permutation(np.delete(np.arange(CLASSES), SITES.index(site) % CLASSES))
    labels_N = np.repeat(labels_N, [30, 8, 5])
    vectors_ND = MEANS_KD[labels_N] + 0.9 * draw.normal(size=(len(labels_N), DIM))
    return vectors_ND.astype(np.float32), labels_N, np.arange(len(labels_N)) % FOLDS


def folds_of(site):
    vectors_ND, labels_N, fold_N = pictures(site)
    held = [fold_N == f for f in range(FOLDS)]
    return [class_statistics(vectors_ND[at], labels_N[at], CLASSES, True) for at in held]


class Federation:
    """Answers of simulated sites in place of messages, and what the coordinator records."""

    heads = None

    def __init__(self, monkeypatch, max_update_mb=1024.0, lies=None, factors=None):
        self.events, self.aside, self.refusals = [], {}, {}
        self.lies, self.messages, self.asked = lies or {}, 0, []
        monkeypatch.setattr(head_search, "run_stage", self.run)
        recipe = parse_recipe(RECIPE.to_toml(), [f"wire.max_update_mb={max_update_mb}"])
        trust = SimpleNamespace(of=lambda site: {"notice": self.aside.get(site, "")})
        trust.leave_out = lambda site, reason, round_: self.aside.update({site: reason})
        tally = SimpleNamespace(left_out=lambda site, stage: None)
        events = SimpleNamespace(emit=lambda event, **values: self.events.append((event, values)))
        context = SimpleNamespace(recipe=recipe, trust=trust, tally=tally, events=events)
        updates = SimpleNamespace(replies=SimpleNamespace(refusals=self.refusals))
        known = {s: SiteFolds.of(folds_of(s), (factors or {}).get(s, 1.0)) for s in SITES}
        self.sites = AskedSites(context, updates, known, needed=3)

    def run(self, stage, number, context, updates, work):
        self.messages += 1
        self.asked.append((stage, tuple(work.sites)))
        packed = {name: array.numpy() for name, array in work.sent.items()}
        heads = Federation.heads = read_stack(packed, FOLDS)
        answer = site_gradients if stage is GRADIENTS else site_counts
        replies = []
        for site in work.sites:
            tensors = answer(*pictures(site), heads)
            assert {n: a.shape for n, a in tensors.items()} == {
                n: spec.shape for n, spec in work.specs.items()
            }
            if site in self.lies:
                tensors = self.lies[site](stage, tensors, self.messages)
            if tensors is not None:
                replies.append(SoundReply(site, 43, tensors))
        work.aggregate(iter(replies))


def totals(sites, factors=None):
    factors = factors or {}
    found = [[one.times(factors.get(s, 1.0)) for one in folds_of(s)] for s in sites]
    return [added(fold) for fold in zip(*found, strict=True)]


def pooled(sites):
    return Pooled(*(np.concatenate(part) for part in zip(*map(pictures, sites), strict=True)))


def results(found):
    return [one.as_json() for one in found.tried]


def test_what_is_chosen_and_fitted_is_that_of_all_pictures_in_one_place(monkeypatch):
    found = best_head(totals(SITES), RECIPE.train, Federation(monkeypatch).sites)
    expected = best_head(totals(SITES), RECIPE.train, pooled(SITES))
    assert found.candidate == expected.candidate
    assert results(found) == results(expected)
    for one, two in zip(found.head, expected.head, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)


def test_heads_that_do_not_fit_into_one_message_are_sent_in_several(monkeypatch):
    small = Federation(monkeypatch, max_update_mb=0.001)
    found = best_head(totals(SITES), RECIPE.train, small.sites)
    assert small.messages > found.messages + 10
    whole = best_head(totals(SITES), RECIPE.train, Federation(monkeypatch).sites)
    assert results(found) == results(whole)
    assert found.head[0].tobytes() == whole.head[0].tobytes()


def huge(stage, tensors, message):
    return {name: 1e9 * array for name, array in tensors.items()}


def late_lie(stage, tensors, message):
    return huge(stage, tensors, message) if message > 4 else tensors


def silent(stage, tensors, message):
    return None if message > 2 else tensors


def turned(stage, tensors, message):
    if stage is not GRADIENTS:
        return tensors
    return {**tensors, GRADIENT: -tensors[GRADIENT], BIAS_GRADIENT: -9 - tensors[BIAS_GRADIENT]}


@pytest.mark.parametrize("lie", [huge, late_lie, silent, turned])
@pytest.mark.parametrize("max_update_mb", [1024.0, 0.001])
def test_who_lies_or_is_silent_is_left_out_and_named_and_the_others_are_fitted(
    monkeypatch, lie, max_update_mb
):
    federation = Federation(monkeypatch, max_update_mb, {LIAR: lie})
    found = regression_head(added(totals(SITES)), RECIPE.train, federation.sites)
    ((event, values),) = federation.events
    assert values["site"] == LIAR
    assert event == ("start_left_out" if lie is silent else "start_refused")
    assert federation.sites.left == [site for site in SITES if site != LIAR]
    assert (LIAR in federation.aside) == (lie is not silent)
    # The same coordinates, the others' pictures.
    others = pooled([site for site in SITES if site != LIAR])
    expected = regression_head(added(totals(SITES)), RECIPE.train, others)
    for one, two in zip(found.head, expected.head, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-4)


def test_a_site_that_keeps_its_scores_is_fitted_and_has_no_say(monkeypatch):
    def keeps(stage, tensors, message):
        return tensors if stage is GRADIENTS else None

    federation = Federation(monkeypatch, lies={LIAR: keeps})
    found = best_head(totals(SITES), RECIPE.train, federation.sites)
    assert federation.events == []
    assert federation.sites.left == SITES
    assert {one.examples for one in found.tried} == {4 * 43}


@pytest.mark.parametrize("max_update_mb", [1024.0, 0.001])
def test_who_does_not_answer_about_one_fold_is_waited_for_once(monkeypatch, max_update_mb):
    def stalls(stage, tensors, message):
        return tensors if stage is GRADIENTS else None

    federation = Federation(monkeypatch, max_update_mb, {LIAR: stalls})
    found = best_head(totals(SITES), RECIPE.train, federation.sites)
    counted = [LIAR in sites for stage, sites in federation.asked if stage is not GRADIENTS]
    assert counted == [True] + [False] * (len(counted) - 1)
    assert {one.examples for one in found.tried} == {4 * 43}


def test_counts_that_cannot_be_leave_a_site_out(monkeypatch):
    def boasts(stage, tensors, message):
        return tensors if stage is GRADIENTS else {COUNTS: tensors[COUNTS] + 1}

    federation = Federation(monkeypatch, lies={LIAR: boasts})
    found = best_head(totals(SITES), RECIPE.train, federation.sites)
    assert list(federation.aside) == [LIAR]
    assert {one.examples for one in found.tried} == {4 * 43}


def test_too_few_sites_end_the_start(monkeypatch):
    federation = Federation(monkeypatch, lies=dict.fromkeys(SITES[:3], silent))
    with pytest.raises(RunFailed, match="2 sound replies of 3 needed"):
        regression_head(added(totals(SITES)), RECIPE.train, federation.sites)


def test_a_site_counts_for_its_share_alone(monkeypatch):
    factors = {LIAR: 0.25}
    federation = Federation(monkeypatch, factors=factors)
    found = regression_head(added(totals(SITES, factors)), RECIPE.train, federation.sites)
    assert not federation.events
    three = [s for s in SITES if s != LIAR]
    quarter = [a for s in three for a in [s] * 4] + [LIAR]
    # Four times all others and once this one, with four times the penalty, is the same optimum.
    settings = RECIPE.train.model_copy(update={"start_penalty": 4 * RECIPE.train.start_penalty})
    expected = regression_head(added(totals(quarter)), settings, pooled(quarter))
    np.testing.assert_allclose(found.head[0], expected.head[0], atol=2e-4)


def dearest(stage, tensors, message):
    """The dearest loss that the site's statistics allow, from the second head on."""
    if stage is not GRADIENTS or message == 1:
        return tensors
    counts_K, squares = SiteFolds.of(folds_of(LIAR), 1.0).learned(ALL)
    heads = Federation.heads
    longest = np.linalg.norm(heads.weight_MKD[0].astype(np.float64), axis=1).max()
    widest = longest * np.sqrt(squares * counts_K.sum())
    most = counts_K.sum() * (np.log(CLASSES) + np.ptp(heads.bias_MVK[0, 0])) + 2 * widest
    return {**tensors, LOSS: np.float32([[0.999 * most, 0]])}


def test_one_site_cannot_end_the_fit_by_a_loss_that_its_gradients_do_not_explain(monkeypatch):
    federation = Federation(monkeypatch, lies={LIAR: dearest})
    found = regression_head(added(totals(SITES)), RECIPE.train, federation.sites)
    assert "are of no pictures" in federation.aside[LIAR]
    others = pooled([site for site in SITES if site != LIAR])
    expected = regression_head(added(totals(SITES)), RECIPE.train, others)
    for one, two in zip(found.head, expected.head, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-4)


def pulls_back(stage, tensors, message):
    """Answers of one convex function that is least where the fit begins."""
    if stage is not GRADIENTS:
        return tensors
    counts_K, squares = SiteFolds.of(folds_of(LIAR), 1.0).learned(ALL)
    weight_KD = Federation.heads.weight_MKD[0].astype(np.float64)
    held_K = counts_K > 0
    weight_KD = np.where(held_K[:, None], weight_KD - weight_KD[held_K].mean(axis=0), 0.0)
    steep = 0.9 * np.sqrt(squares * counts_K[held_K].min())
    length = np.linalg.norm(weight_KD)
    loss = counts_K.sum() * 0.5 + steep * length
    return {
        LOSS: np.float32([[loss, 0]]),
        GRADIENT: (steep * weight_KD / max(length, 1e-30))[None].astype(np.float32),
        BIAS_GRADIENT: np.zeros((1, CLASSES), np.float32),
    }


def test_a_convex_pull_to_where_the_fit_began_weighs_as_the_sites_pictures_do(monkeypatch):
    federation = Federation(monkeypatch, lies={LIAR: pulls_back})
    found = regression_head(added(totals(SITES)), RECIPE.train, federation.sites)
    assert not federation.aside
    vectors_ND, labels_N = (
        np.concatenate(part) for part in list(zip(*map(pictures, SITES), strict=True))[:2]
    )
    right = (vectors_ND @ found.head[0].T + found.head[1]).argmax(axis=1) == labels_N
    # 0.96 without it, 0.33 where the fit ends at once.
    assert right.mean() > 0.85
