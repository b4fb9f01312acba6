"""Who can read what a run leaves: homes, caches and private parts are their owner's alone."""

import json
import os
import stat
from pathlib import Path

import pytest
from tests_recipe import TINY

from fgvc_core.files import widely_readable
from fgvc_core.protocol.messages import Sealed
from fgvc_core.recipe import parse_recipe
from fieldmark.client.job import Incoming, answer
from fieldmark.server.report.page import render
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.simulate import simulate

SHARED = {"recipe.toml", "class_names.json", "events.jsonl", "metrics.json", "evaluation.json",
          "report.html", "checkpoints", "pictures", "explanations"}  # fmt: skip
"""What others may be shown of a run: settings, scores, the released model and its report. None of
it says more than left the sites."""


@pytest.fixture(scope="module")
def private_run(tmp_path_factory):
    """A small private simulation at the usual umask, over a cache that it makes itself."""
    before, cache = os.umask(0o022), os.environ["FIELDMARK_CACHE"]
    os.environ["FIELDMARK_CACHE"] = str(tmp_path_factory.mktemp("modes") / "cache")
    try:
        changes = ["privacy.epsilon=4.0", "privacy.method=gradients", "privacy.sampling_rate=0.5",
                   "privacy.steps=2", "federation.rounds=1", "partition.sites=2",
                   "model.train=head"]  # fmt: skip
        plan = Simulation(parse_recipe(TINY, changes), tmp_path_factory.mktemp("modes") / "run")
        simulate(plan)
        # Something for its log.
        answer(plan.out / "sites" / "site-1", Incoming(Sealed("{}", b""), {}))
        yield plan.out, os.environ["FIELDMARK_CACHE"]
    finally:
        os.environ["FIELDMARK_CACHE"] = cache
        os.umask(before)


def test_no_bit_is_set_for_anybody_else_on_a_home_a_cache_or_a_private_part(private_run):
    out, cache = private_run
    homes = sorted((out / "sites").iterdir())
    assert (homes[0] / "site.log").is_file()
    assert (homes[0] / "outbox").is_dir()
    assert list((homes[0] / "runs").iterdir())
    cached = [path for path in Path(cache).rglob("*") if path.is_file()]
    assert {path.suffix for path in cached} >= {".npy", ".safetensors", ".lock"}
    for private in (out / "sites", out / "coordinator", Path(cache)):
        assert widely_readable(private) == []
    assert widely_readable(out / "partition.json") == []


def test_what_others_may_read_of_a_run_is_a_list(private_run):
    out, _ = private_run
    for path in out.iterdir():
        shared = stat.S_IMODE(path.stat().st_mode) & 0o044
        assert path.name in SHARED or not shared, path.name


def test_a_private_runs_report_does_not_show_the_true_counts_that_its_researcher_has(private_run):
    out, _ = private_run
    partition = json.loads((out / "partition.json").read_text())
    assert partition["private"] is True
    assert sum(map(sum, partition["sites"].values())) == 120
    assert "Who holds what" not in render(out).read_text()
