"""Noisy sums are judged by what is public, before anybody pays for the next."""

from types import SimpleNamespace

import numpy as np
import pytest

from fgvc_core.privacy.class_sums import sums_bound, sums_deviation
from fgvc_core.privacy.noise import make_grid
from fgvc_core.privacy.planning import plan_for
from fgvc_core.recipe import parse_recipe
from fieldmark.server.rounds.closed_form import ClosedForm
from fieldmark.server.screening.releases import SumsScreening, too_many_units

CLASSES, DIRECTIONS, UNITS = 4, 16, 200
RECIPE = parse_recipe(
    "[model]\nhead='subspace'\ntrain='head'\n[federation]\nrounds=1\n"
    "[privacy]\nepsilon=4.0\nmethod='class-sums'"
)
NOISE = {e.purpose: e.noise_multiplier for e in plan_for(RECIPE.privacy, 1)}
COUNT = RECIPE.privacy.count_coordinate
SITES = [f"site-{n}" for n in range(5)]


def honest(site, classes=CLASSES, units=UNITS):
    """A site's two releases: vectors about a mean of their class, all with a common part."""
    draw = np.random.default_rng(SITES.index(site))
    means_KP = np.random.default_rng(99).normal(size=(CLASSES, DIRECTIONS)) + 1.0
    labels_N = draw.integers(0, classes, units)
    vectors_NP = means_KP[labels_N] + 0.5 * draw.normal(size=(units, DIRECTIONS))
    vectors_NP /= np.linalg.norm(vectors_NP, axis=1, keepdims=True)
    deviation = make_grid(1.0, DIRECTIONS, NOISE["centre"]).deviation
    centre_P = vectors_NP.sum(0) + draw.normal(0, deviation, DIRECTIONS)
    vectors_NP -= vectors_NP.mean(0)
    vectors_NP /= np.linalg.norm(vectors_NP, axis=1, keepdims=True)
    sums_KQ = np.zeros((CLASSES, DIRECTIONS + 1))
    for k in range(CLASSES):
        mine = vectors_NP[labels_N == k]
        sums_KQ[k, :-1], sums_KQ[k, -1] = mine.sum(0), COUNT * len(mine)
    deviation = sums_deviation(CLASSES, DIRECTIONS, COUNT, NOISE["class-sums"])
    sums_KQ += draw.normal(0, deviation, sums_KQ.shape)
    return {"centre": centre_P, "class-sums": sums_KQ}


def first(sums):
    """A whole site in one class, and no count."""
    one = np.zeros_like(sums)
    one.flat[0] = 0.95
    return one


class Federation:
    """Answers a closed form's phases, and remembers who was asked and left out."""

    def __init__(self, lies=None, units=None):
        self.lies = lies or {}
        self.units = units or dict.fromkeys(SITES, UNITS)
        self.asked, self.out = {}, {}

    def ask(self, stage, model, specs):
        phase = stage.name
        self.asked[phase] = [site for site in SITES if site not in self.out]
        for site in self.asked[phase]:
            sums = honest(site)[phase]
            lie = self.lies.get((site, phase))
            values = sums if lie is None else lie(sums)
            yield SimpleNamespace(site=site, tensors={phase: values.astype(np.float32)})

    def leave_out(self, stage, refused):
        self.out |= refused

    def run(self, needed=1, share=1.0):
        tensors = {
            "head.centre": np.zeros(DIRECTIONS, np.float32),
            "head.weight": np.zeros((CLASSES, DIRECTIONS), np.float32),
            "head.bias": np.zeros(CLASSES, np.float32),
        }
        closed = ClosedForm(RECIPE, self.units, CLASSES, needed, share)
        return closed.run(tensors, self.ask, self.leave_out)


def test_honest_releases_are_all_taken():
    federation = Federation()
    tensors, arrived = federation.run()
    assert (arrived, federation.out) == (5, {})
    assert np.isfinite(tensors["head.weight"]).all()


def test_honest_sites_of_few_classes_each_are_all_taken():
    screen = SumsScreening(
        dict.fromkeys(SITES, UNITS), sums_bound(COUNT),
        sums_deviation(CLASSES, DIRECTIONS, COUNT, NOISE["class-sums"]), 6.0, COUNT,
    )  # fmt: skip
    sums = {site: honest(site, 1 + n % CLASSES)["class-sums"] for n, site in enumerate(SITES)}
    assert screen.refused(sums) == {}


@pytest.mark.parametrize(
    ("phase", "lie", "said"),
    [
        ("centre", lambda sums: sums + 1e30, "declared units"),
        ("centre", lambda sums: 3 * UNITS * sums / np.linalg.norm(sums), "declared units"),
        ("centre", lambda sums: -sums, "against those of the other sites"),
        ("class-sums", lambda sums: sums * 1e20, "declared units"),
        ("class-sums", lambda sums: sums * [*[-1.0] * DIRECTIONS, 1.0], "against"),
        ("class-sums", lambda sums: 0 * sums + UNITS * first(sums), "noisy count"),
    ],
    ids=["huge centre", "long centre", "centre turned", "huge sums", "sums turned", "no count"],
)  # fmt: skip
def test_a_release_that_cannot_be_is_left_out_and_its_site_is_named(phase, lie, said):
    federation = Federation({("site-2", phase): lie})
    _, arrived = federation.run()
    assert list(federation.out) == ["site-2"]
    assert said in federation.out["site-2"]
    assert arrived == 4
    # Who lied in the first phase is not asked in the second, and moves nothing.
    others = {"site-2": lambda sums: np.zeros_like(sums)}
    assert federation.asked["class-sums"] == (
        SITES if phase == "class-sums" else [s for s in SITES if s not in others]
    )


def test_classes_turned_by_a_site_of_many_units_count_for_half_at_most():
    units = dict.fromkeys(SITES, UNITS) | {"site-2": 19 * UNITS}
    large = honest("site-2", units=19 * UNITS)
    lies = {
        ("site-2", "centre"): lambda sums: large["centre"],
        ("site-2", "class-sums"): lambda sums: np.roll(large["class-sums"], 1, axis=0),
    }
    honest_KP = Federation().run()[0]["head.weight"]

    def own_classes(share):
        """How far each class's row of the head points its own way, in the mean."""
        found_KP = Federation(lies, units).run(share=share)[0]["head.weight"]
        return (found_KP * honest_KP).sum(axis=1).mean()

    assert own_classes(1.0) < 0 < own_classes(0.5)
    cut = ClosedForm(RECIPE, units, CLASSES, 1, 0.5).factors(SITES)
    # What it has left is as much as the others have together, and no more.
    assert cut == {**dict.fromkeys(SITES, 1.0), "site-2": pytest.approx(4 / 19)}
    assert ClosedForm(RECIPE, units, CLASSES, 1).factors(SITES) == dict.fromkeys(SITES, 1.0)


def test_nobody_pays_for_class_sums_that_could_not_make_a_head():
    lies = {(site, "centre"): lambda sums: sums + 1e30 for site in SITES[1:]}
    federation = Federation(lies)
    assert federation.run(needed=3) == (None, 1)
    assert "class-sums" not in federation.asked


def test_a_site_that_declares_a_hundred_times_as_much_as_others_is_not_asked():
    units = {"a": 100, "b": 120, "c": 90, "d": 20_000}
    assert list(too_many_units(units, 100.0)) == ["d"]
    assert too_many_units({"a": 10, "b": 500}, 100.0) == {}
