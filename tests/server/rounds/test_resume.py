"""The server's process killed at any point of a run, and resumed: the same bits, each event once.

The run lives in a forked process with its sites, so that SIGKILL takes everything at once, as a
power cut does. Points are counted: before and after each event is written and each file is put
in its place (checkpoints, sidecars, sites' kept tensors, announcements, results).
"""

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from inline_executor import Here
from tests_recipe import TINY

from fgvc_core.errors import ConfigurationError
from fgvc_core.recipe import parse_recipe
from fgvc_core.training import head_search
from fieldmark.server.results import write as results
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState, read_checkpoint
from fieldmark.server.run_log.events import EventLog
from fieldmark.simulations.engines import run_inprocess
from fieldmark.simulations.folders import lay_out, site_homes
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, prepare

STRATEGIES = ("fedavg", "fedprox", "fedadam", "scaffold", "fedmedian")
SEARCH = "auto"
"""Name of a plan that searches for a head before its only round."""
POINTS = 32
BY_DEFAULT = [
    *((SEARCH, share) for share in (0.4, 0.9)),
    *(("scaffold", point / 5) for point in range(6)),
    *((name, share) for name in STRATEGIES if name != "scaffold" for share in (0.35, 0.8)),
]
SETS = (
    *("federation.rounds=4", "model.train=head", "data.fieldmarks_test=24", "evaluate.every=0"),
    *("federation.fraction=0.5", "federation.patience=9", "train.optimizer=sgd", "train.lr=0.5"),
)
SEARCHES = ("train.start=auto", "train.start_folds=2", "federation.rounds=1")


class Points:
    """Counts what can be a last deed, and kills this process at one of them."""

    def __init__(self, last=None):
        self.count, self.last = 0, last

    def pass_one(self):
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function):
        def watched(*arguments, **named):
            self.pass_one()
            result = function(*arguments, **named)
            self.pass_one()
            return result

        return watched

    def watch(self):
        EventLog.emit = self.around(EventLog.emit)
        os.replace = self.around(os.replace)


def spare():
    """Leave out, in this process, what costs most of a small run and cannot change its bits.

    A killed process leaves the system's own cache behind, so waiting for the disk tells nothing
    here; and the report's pictures of confused classes are drawn after all that is compared. A
    search for a head tries two candidates.
    """
    os.fsync = lambda descriptor: None
    results.confused_pairs = lambda *arguments: []
    head_search.SHRINKAGES, head_search.PENALTIES = (0.4,), (30.0,)


def in_a_process(plan, points=None):
    """Run a plan in a forked process; returns its exit status and how many points it passed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            spare()
            points = points or Points()
            points.watch()
            run_inprocess(plan.out, site_homes(plan, Sites), Here(), 1)
            os.write(writing, str(points.count).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    passed = os.read(reading, 100)
    os.close(reading)
    return os.waitpid(child, 0)[1], int(passed or 0)


class Sites:
    """What site_homes reads of a setting."""

    rows = dict.fromkeys(("site-1", "site-2", "site-3"))


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Strategy -> a plan whose folder is laid out and not begun, made once."""
    folder = tmp_path_factory.mktemp("started")
    cache = folder / "cache"
    made = {}

    def make(strategy):
        if strategy not in made:
            own = SEARCHES if strategy == SEARCH else [f"federation.strategy={strategy}"]
            recipe = parse_recipe(TINY, [*SETS, *own])
            setting = deal(recipe, cache)
            if not made:
                prepare(recipe, setting, Here(), lambda done, total: None)
            plan = Simulation(recipe, folder / strategy)
            lay_out(plan, setting)
            whole = copied(plan, folder / f"{strategy}-whole")
            status, points = in_a_process(whole)
            assert status == 0
            made[strategy] = plan, whole, points
        return made[strategy]

    return make


def copied(plan, out):
    shutil.copytree(plan.out, out)
    return replace(plan, out=out)


def left(plan):
    """All that has to be the same: tensors to the bit, events, history."""
    tensors = {}
    for name in ("last", "best"):
        checkpoints = Checkpoints(plan.out, plan.recipe, ())
        found, _ = read_checkpoint(checkpoints.folder / f"{name}.safetensors")
        found |= {f"server {n}": a for n, a in checkpoints.remembered(name).items()}
        tensors |= {f"{name} {k}": v.tobytes() for k, v in found.items()}
    metrics = json.loads((plan.out / "metrics.json").read_text())
    passing = ("time", "seconds", "work_seconds", "bytes_up", "bytes_down", "run")
    events = [
        {k: v for k, v in json.loads(line).items() if k not in passing}
        for line in (plan.out / "events.jsonl").read_text().splitlines()
    ]
    # Each process calls the roll; that is all it may add.
    events = [e for e in events if e["event"] not in ("resumed", "roll_call")]
    history = [{k: v for k, v in h.items() if k not in passing} for h in metrics["history"]]
    return tensors, events, history, metrics["top1"], metrics["best_round"]


def check(started, tmp_path, strategy, share):
    plan, whole, points = started(strategy)
    assert points >= POINTS
    last = 1 + round(share * (points - 1))
    run = copied(plan, tmp_path / "run")
    status, _ = in_a_process(run, Points(last))
    assert os.WIFSIGNALED(status), f"not killed at point {last} of {points}"
    assert os.WTERMSIG(status) == signal.SIGKILL
    status, _ = in_a_process(run)
    assert status == 0, f"not resumed from point {last} of {points}"
    found, expected = left(run), left(whole)
    for one, two in zip(found, expected, strict=True):
        assert one == two, f"differs after point {last} of {points}"


@pytest.mark.parametrize(("strategy", "share"), BY_DEFAULT)
def test_a_run_killed_at_some_points_ends_in_the_same_bits(started, tmp_path, strategy, share):
    check(started, tmp_path, strategy, share)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("point", range(POINTS))
def test_a_run_killed_at_any_point_ends_in_the_same_bits(started, tmp_path, strategy, point):
    check(started, tmp_path, strategy, point / (POINTS - 1))


def test_what_an_interrupted_round_wrote_is_set_apart_not_lost(started, tmp_path):
    plan, _, points = started("fedavg")
    run = copied(plan, tmp_path / "run")
    in_a_process(run, Points(points // 2))
    before = (run.out / "events.jsonl").read_text().splitlines()
    in_a_process(run)
    after = set((run.out / "events.jsonl").read_text().splitlines())
    cut = set((run.out / "events-cut.jsonl").read_text().splitlines())
    assert set(before) <= after | cut


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("recipe", "train.lr was 0.001, is 0.5"),
        ("version", "written by Fieldmark 0.0.9"),
    ],
)
def test_another_recipes_or_versions_checkpoint_is_refused_with_the_difference(
    tmp_path, tiny, monkeypatch, change, said
):
    tensors = {"w": torch.ones(2).numpy()}
    with monkeypatch.context() as patch:
        if change == "version":
            patch.setattr("fieldmark.server.run_log.checkpoint.__version__", "0.0.9")
        Checkpoints(tmp_path, tiny, ("a",)).write("last", tensors, RunState(run="r"))
    other = parse_recipe(tiny.to_toml(), ["train.lr=0.5"] if change == "recipe" else [])
    with pytest.raises(ConfigurationError, match=said) as caught:
        Checkpoints(tmp_path, other, ("a",)).read("last")
    assert caught.value.exit_code == 2


def test_every_so_many_rounds_are_kept(started):
    plan, _, _ = started("fedavg")
    assert Path(plan.out / "checkpoints").exists() is False
    kept = replace(plan, out=plan.out.with_name("kept"))
    shutil.copytree(plan.out, kept.out)
    text = (kept.out / "recipe.toml").read_text()
    text = text.replace("keep_every = 0", "keep_every = 2")
    (kept.out / "recipe.toml").write_text(text)
    assert in_a_process(kept)[0] == 0
    names = {path.stem for path in (kept.out / "checkpoints").glob("*.safetensors")}
    assert names == {"last", "best", "round-000002", "round-000004"}
