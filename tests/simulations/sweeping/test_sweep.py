import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from legible import figures_of
from tests_recipe import TINY
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.errors import ConfigurationError, FieldmarkError, PolicyRefusal, RunFailed
from fgvc_core.files import replace_json
from fgvc_core.recipe import load_recipe
from fieldmark.server.report.page import report_style
from fieldmark.simulations.sweeping import runner
from fieldmark.simulations.sweeping.axes import Axis, plan_points, read_axes, read_axis
from fieldmark.simulations.sweeping.figure import Horizontal, Mark, Series, draw
from fieldmark.simulations.sweeping.page import number, share, write_sweep
from fieldmark.simulations.sweeping.runner import run_points
from fieldmark.simulations.sweeping.table import (
    FIGURES,
    finished,
    read_failures,
    run_dir,
    summarise,
)

ALPHA = "partition.alpha=0.5,5"


def points_of(path, *over, seeds=2, sets=()):
    return plan_points(path, list(sets), read_axes(list(over)), seeds)


class FakeRuns:
    """Stands in for a simulation: makes a run's folder, or ends as it is told."""

    def __init__(self, ends=()):
        self.ends = dict(ends)
        self.asked = []

    def __call__(self, plan, pool, workers, tell):
        name = plan.out.name
        self.asked.append((name, plan.resume))
        if not plan.resume:
            plan.out.mkdir(parents=True)
            (plan.out / "recipe.toml").write_text(plan.recipe.to_toml())
            (plan.out / "partition.json").write_text("{}")
        if name in self.ends:
            raise self.ends.pop(name)
        alpha = plan.recipe.partition.alpha
        metrics = {
            "stopped": "rounds", "pixel_baseline": None, "rounds": 2, "wall_s": 1.0,
            "bytes_up": int(1000 * alpha), "bytes_down": 500, "sites": {"a": {"top1": 0.5}},
            "top1": 0.5 + alpha / 100 + plan.recipe.seed / 1000, "macro_f1": 0.4,
        }  # fmt: skip
        replace_json(plan.out / "metrics.json", metrics)


@pytest.fixture
def fake(monkeypatch):
    """Runs that cost nothing; the workers are not hired either."""
    runs = FakeRuns()

    class NoPool:
        def __enter__(self):
            return None

        def __exit__(self, *told):
            return False

    monkeypatch.setattr(runner, "run_with", lambda *a: runs(*a))
    monkeypatch.setattr(runner, "hired", lambda count: NoPool())
    return runs


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=1,2,3", ("1", "2", "3")),
        ("a.b= x , y", ("x", "y")),
        ('a.b="x,y",z', ('"x,y"', "z")),
        ('a.b=["p","q"],[]', ('["p","q"]', "[]")),
    ],
)
def test_an_axis_takes_commas_that_are_inside_a_value_as_part_of_it(text, values):
    assert read_axis(text) == Axis("a.b", values)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ([], "something to go over"),
        (["partition.alpha"], "is not section.key"),
        (["partition.alpha=1,,2"], "is not section.key"),
        (["partition.alpha=1,2,1"], "the value 1 twice"),
        (["train.lr=1,2", "train.lr=3"], "names 'train.lr' twice"),
        (["seed=1,2"], "--over seed"),
        (["name=a,b"], "--over name"),
        (["partition.alpha=1,1.0"], "the same experiment"),
        (["partition.alhpa=1,2"], "Did you mean 'alpha'"),
        (["partition.alpha=1,-2"], "At partition.alpha=-2"),
        (["train.lr=0.1,fast"], "At train.lr=fast"),
    ],
)
def test_a_wrong_sweep_is_refused_before_its_first_run(tmp_path, tiny_file, over, said, fake):
    args = [word for each in over for word in ("--over", each)]
    result = CliRunner().invoke(
        fieldmark.cli.app, ["sweep", str(tiny_file), *args, "--out", str(tmp_path / "s")]
    )
    assert isinstance(result.exception, ConfigurationError)
    assert said in str(result.exception)
    assert fake.asked == []
    assert not (tmp_path / "s").exists()


def test_what_privacy_refuses_at_one_point_is_refused_at_the_start(tiny_file):
    sets = ["privacy.epsilon=4.0", "privacy.method=gradients"]
    with pytest.raises(PolicyRefusal, match=r"At federation\.strategy=scaffold"):
        points_of(tiny_file, "federation.strategy=fedavg,scaffold", sets=sets)


def test_the_grid_is_every_combination_under_every_seed(tiny_file):
    points = points_of(tiny_file, ALPHA, "train.lr=0.1,0.2,0.3", seeds=2)
    assert len(points) == 12
    assert points[0].name == "alpha=0.5_lr=0.1_seed=3"
    assert [p.recipe.seed for p in points[:2]] == [3, 4]
    assert {(p.recipe.partition.alpha, p.recipe.train.lr) for p in points} == {
        (a, lr) for a in (0.5, 5) for lr in (0.1, 0.2, 0.3)
    }


def test_a_stopped_sweep_goes_on_and_repeats_nothing(tmp_path, tiny_file, fake):
    points = points_of(tiny_file, ALPHA)
    fake.ends = {points[2].name: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run_points(points, tmp_path / "s")
    run_points(points, tmp_path / "s")
    names = [p.name for p in points]
    assert fake.asked == [
        *((name, False) for name in names[:3]),
        # The one that was cut off goes on, and what was never begun begins.
        (names[2], True),
        (names[3], False),
    ]
    fake.asked.clear()
    run_points(points, tmp_path / "s")
    assert fake.asked == []


def test_more_seeds_and_more_values_add_to_what_is_there(tmp_path, tiny_file, fake):
    run_points(points_of(tiny_file, ALPHA, seeds=1), tmp_path / "s")
    fake.asked.clear()
    run_points(points_of(tiny_file, "partition.alpha=0.5,5,50", seeds=2), tmp_path / "s")
    assert [name for name, _ in fake.asked] == [
        "alpha=0.5_seed=4", "alpha=5_seed=4", "alpha=50_seed=3", "alpha=50_seed=4",
    ]  # fmt: skip


def test_a_folder_that_was_half_laid_out_is_begun_anew(tmp_path, tiny_file, fake):
    (point, *_) = points = points_of(tiny_file, ALPHA, seeds=1)
    folder = run_dir(tmp_path / "s", point)
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(point.recipe.to_toml())
    run_points(points, tmp_path / "s")
    assert fake.asked[0] == (point.name, False)


def test_a_run_that_fails_is_recorded_and_the_rest_goes_on(tmp_path, tiny_file, fake):
    points = points_of(tiny_file, ALPHA)
    fake.ends = {points[1].name: RunFailed("no quorum"), points[2].name: ValueError("a bug")}
    out = tmp_path / "s"
    run_points(points, out)
    assert [name for name, _ in fake.asked] == [p.name for p in points]
    assert {n: f["what"] for n, f in read_failures(out).items()} == {
        points[1].name: "no quorum",
        points[2].name: "ValueError: a bug",
    }
    told = write_sweep(points, read_axes([ALPHA]), 2, out)
    assert [row["state"] for row in told["runs"]] == ["done", "failed", "failed", "done"]
    assert [entry["done"] for entry in told["table"]] == [1, 1]
    fake.asked.clear()
    run_points(points, out)
    assert fake.asked == []
    run_points(points, out, retry=True)
    assert [name for name, _ in fake.asked] == [points[1].name, points[2].name]
    assert read_failures(out) == {}


def test_the_exit_code_says_that_runs_failed_and_the_table_is_there(tmp_path, tiny_file, fake):
    fake.ends = {"alpha=5_seed=3": RunFailed("no quorum")}
    out = tmp_path / "s"
    args = ["sweep", str(tiny_file), "--over", ALPHA, "--seeds", "1", "--out", str(out)]
    result = CliRunner().invoke(fieldmark.cli.app, args)
    assert isinstance(result.exception, RunFailed)
    assert result.exception.exit_code == 6
    assert "1 of 2 runs failed" in str(result.exception)
    assert "no quorum" in (out / "sweep.html").read_text()


def test_another_recipes_sweep_is_not_mixed_in(tmp_path, tiny_file, fake):
    run_points(points_of(tiny_file, ALPHA), tmp_path / "s")
    with pytest.raises(ConfigurationError, match=r"train\.lr was .* is 0\.5"):
        run_points(points_of(tiny_file, ALPHA, sets=["train.lr=0.5"]), tmp_path / "s")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="something else"):
        run_points(points_of(tiny_file, ALPHA), tmp_path / "other")


def test_missing_data_stop_the_sweep_before_its_first_run(tmp_path, tiny_file, fake):
    sets = ["data.name=cub", f"data.path={tmp_path / 'nowhere'}"]
    with pytest.raises(FieldmarkError, match="nowhere"):
        run_points(points_of(tiny_file, ALPHA, sets=sets), tmp_path / "s")
    assert fake.asked == []


def test_mean_and_deviation_are_over_the_runs_that_are_done():
    rows = [
        {"settings": {"k": "1"}, "state": "done", **dict.fromkeys(FIGURES), "top1": top1}
        for top1 in (0.2, 0.4, 0.9)
    ]
    rows.append({"settings": {"k": "1"}, "state": "failed", **dict.fromkeys(FIGURES)})
    (entry,) = summarise(rows)
    assert entry["top1"] == pytest.approx(0.5)
    assert entry["top1_deviation"] == pytest.approx(0.36055512754639896)
    assert (entry["runs"], entry["done"], entry["failed"]) == (4, 3, 1)
    assert entry["epsilon"] is None
    (alone,) = summarise(rows[:1])
    assert alone["top1_deviation"] is None


def test_the_csv_files_and_the_page_say_what_the_json_says(tmp_path, tiny_file, fake):
    out, axes = tmp_path / "s", read_axes([ALPHA])
    points = points_of(tiny_file, ALPHA)
    run_points(points, out)
    told = write_sweep(points, axes, 2, out)
    assert json.loads((out / "sweep.json").read_text()) == told
    with (out / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["top1"]) for row in table] == [e["top1"] for e in told["table"]]
    assert [row["partition.alpha"] for row in table] == ["0.5", "5"]
    with (out / "runs.csv").open() as file:
        assert [row["run"] for row in csv.DictReader(file)] == [p.name for p in points]
    page = (out / "sweep.html").read_text()
    assert share(told["table"][1]["top1"], told["table"][1]["top1_deviation"]) in page
    # Against alpha, and against the bytes, which differ here.
    assert page.count('<svg class="figure"') == 2
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    for figure in figures_of(page):
        assert figure.smallest_px >= 11
        assert (figure.outside, figure.overlapping) == ([], [])
    assert all("data-label=" in cell for cell in re.findall(r"<td[^>]*>", page))
    # Half a point per seed, and four and a half between the settings, under either seed.
    assert told["in_words"] == "alpha 5 is best"
    assert "alpha 5 is best (55.4" in page


@pytest.mark.parametrize("names", [None, ("dirichlet-with-a-long-name", "iid", "subjects")])
def test_labels_of_any_axis_are_legible_and_apart(names):
    ticks = (0.1, 0.15, 0.2) if names is None else (0.0, 1.0, 2.0)
    marks = tuple(Mark(x, 0.83 + x / 100, 0.004, ((x, 0.83),)) for x in ticks)
    axis = Horizontal("some.section.with.a.very.long.key_of_a_setting", ticks, names)
    drawn, _ = draw("t", axis, [Series("", marks)], "top-1, held-out test")
    (figure,) = figures_of(f"<style>{report_style()}</style>{drawn}")
    assert figure.smallest_px >= 11
    assert (figure.outside, figure.overlapping) == ([], [])
    assert all(tick.endswith(" %") for tick in figure.ticks if tick[0] == "8")


def test_the_axis_is_logarithmic_where_it_spans_a_factor_of_ten():
    assert Horizontal("x", (0.1, 0.5, 5.0)).logarithmic
    assert not Horizontal("x", (1.0, 2.0, 9.0)).logarithmic
    assert not Horizontal("x", (0.0, 1000.0)).logarithmic
    marks = tuple(Mark(x, 0.5, None, ((x, 0.5),)) for x in (0.1, 1.0, 10.0))
    drawn, _ = draw("t", Horizontal("x", (0.1, 1.0, 10.0)), [Series("", marks)], "top-1")
    places = [float(part.split('"')[0]) for part in drawn.split('class="dot s1" cx="')[1:]]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)


def test_lines_have_their_names_beside_them_and_an_axis_says_that_it_is_cut():
    lines = [
        Series(name, tuple(Mark(x, low + x / 20, None, ((x, low + x / 20),)) for x in (1.0, 2, 4)))
        for name, low in (("few", 0.3), ("many", 0.6))
    ]
    drawn, named = draw("t", Horizontal("x", (1.0, 2.0, 4.0)), lines, "top-1")
    assert named
    assert ">few</text>" in drawn
    assert "the axis begins at 30 %" in drawn
    # Marks above names stand side by side: no line leads to them.
    _, named = draw("t", Horizontal("x", (1.0, 2.0, 4.0), ("a", "b", "c")), lines, "top-1")
    assert not named
    low = [Series("", (Mark(1.0, 0.01, None, ((1.0, 0.01),)),))]
    assert "begins" not in draw("t", Horizontal("x", (1.0, 2.0)), low, "top-1")[0]


def test_figures_are_written_short():
    assert number(9.328e6, 32.0, 1e6) == "9.33"
    assert number(5.692, 0.85) == "5.69 ± 0.85"
    assert number(1234.0) == "1,234"
    assert number(None) == "–"
    assert share(0.5, 0.021) == "50.0 ± 2.1\N{NO-BREAK SPACE}%"


def test_a_real_sweep_leaves_runs_and_a_page(tmp_path, tiny_file):
    out = tmp_path / "s"
    args = ["sweep", str(tiny_file), "--over", "privacy.epsilon=2.0,8.0", "--seeds", "1"]
    sets = ["privacy.method=gradients", "privacy.sampling_rate=1.0", "privacy.steps=1",
            "federation.rounds=1", "partition.sites=2", "data.fieldmarks_train=60"]  # fmt: skip
    args += [f"--set={each}" for each in sets]
    result = CliRunner().invoke(fieldmark.cli.app, [*args, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.exception
    told = json.loads(result.stdout)
    for row, epsilon in zip(told["runs"], (2.0, 8.0), strict=True):
        folder = out / "runs" / row["run"]
        # Fresh sites for each run: none has spent what another run asked for.
        assert row["epsilon"] == pytest.approx(epsilon, rel=0.02)
        assert (folder / "report.html").is_file()
        assert load_recipe(folder / "recipe.toml").privacy.epsilon == epsilon
        assert finished(folder)["top1"] == row["top1"]
    assert "What the sweep itself costs" in (out / "sweep.html").read_text()


@pytest.mark.slow
def test_a_killed_sweep_goes_on_in_the_round_where_it_was(tmp_path):
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(TINY)
    out = tmp_path / "s"
    command = [
        sys.executable, "-m", "fieldmark", "sweep", str(recipe), "--over", "train.lr=0.001,0.003",
        "--seeds", "1", "--set", "federation.rounds=6", "--out", str(out),
    ]  # fmt: skip
    second = out / "runs" / "lr=0.003_seed=3"
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 900
        while _rounds(second) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGKILL)
    assert 2 <= _rounds(second) < 6
    first = (out / "runs" / "lr=0.001_seed=3" / "events.jsonl").read_bytes()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert (out / "runs" / "lr=0.001_seed=3" / "events.jsonl").read_bytes() == first
    events = [json.loads(line) for line in (second / "events.jsonl").read_text().splitlines()]
    assert [e["round"] for e in events if e["event"] == "round_finished"] == list(range(1, 7))
    assert sum(e["event"] == "resumed" for e in events) == 1


def _rounds(folder: Path) -> int:
    path = folder / "events.jsonl"
    return path.read_text().count('"round_finished"') if path.is_file() else 0
