"""The ablation: what is run, what is kept, and when a part is said to help."""

import json
from contextlib import contextmanager

import pytest
from inline_executor import Here
from tests_recipe import TINY

from fgvc_core.errors import ConfigurationError
from fieldmark.simulations.bench import learner, run_benches
from fieldmark.simulations.bench.learner import Outcome, recipe_of, row_figure, with_references
from fieldmark.simulations.bench.learner_rows import PLAIN, ROWS, Row


def outcomes(*scores):
    return [Outcome(score, 10.0, 8.0, 1000) for score in scores]


def test_every_row_is_a_recipe_and_changes_something():
    digests = {recipe_of(row, 1).digest for row in ROWS.values()}
    assert len(digests) == len(ROWS)
    assert ROWS[PLAIN].against is None
    assert all(row.against in ROWS for row in ROWS.values() if row.against is not None)


def test_what_a_row_is_compared_with_is_run_too_and_first():
    assert with_references(["parts"]) == [PLAIN, "parts"]
    assert with_references([]) == list(ROWS)
    order = list(ROWS)
    for name, row in ROWS.items():
        assert row.against is None or order.index(row.against) < order.index(name)


def test_an_unknown_row_is_answered_with_the_nearest():
    with pytest.raises(ConfigurationError, match="tripled") as caught:
        with_references(["tripled"])
    assert "triplet" in caught.value.remedy
    with pytest.raises(ConfigurationError, match="belong to the benchmarks learner and heads"):
        run_benches("wire", ["triplet"])


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ((0.60, 0.62, 0.64), "helps"),
        ((0.50, 0.52, 0.54), "no difference"),
        ((0.40, 0.62, 0.60), "no difference"),
        ((0.30, 0.32, 0.34), "hurts"),
    ],
)
def test_a_part_helps_from_one_deviation_on(scores, verdict):
    found = row_figure(Row("a part"), outcomes(*scores), outcomes(0.50, 0.51, 0.55))
    assert found["verdict"] == verdict
    assert found["value"] == pytest.approx(sum(scores) / 3, abs=1e-4)
    assert found["gain"] == pytest.approx(sum(scores) / 3 - 0.52, abs=1e-4)
    assert found["reference"] == 0.52
    assert (found["seconds"], found["cpu_seconds"], found["bytes"]) == (10.0, 8.0, 1000)


def test_the_deviations_are_those_of_scores_and_of_paired_gains():
    found = row_figure(Row("a part"), outcomes(0.5, 0.6, 0.7), outcomes(0.4, 0.5, 0.6))
    assert (found["deviation"], found["gain_deviation"]) == (0.1, 0.0)
    alone = row_figure(ROWS[PLAIN], outcomes(0.5, 0.6, 0.7), None)
    assert (alone["gain"], alone["verdict"], alone["reference"]) == (None, None, None)


def test_what_was_run_is_kept_and_not_run_again(tmp_path, monkeypatch):
    recipe = tmp_path / "small.toml"
    small = (
        TINY.replace("= 120", "= 60").replace("= 48", "= 24").replace("rounds = 2", "rounds = 1")
    )
    recipe.write_text(small)

    @contextmanager
    def here(count):
        yield Here()

    monkeypatch.setattr(learner, "RECIPE", recipe)
    monkeypatch.setattr(learner, "SEEDS", (1, 2))
    monkeypatch.setattr(learner, "hired", here)
    said = []
    first = learner.bench_learner(["closer"], tmp_path / "kept", said.append)
    assert list(first) == [PLAIN, "closer"]
    assert [line.split(":")[0] for line in said] == [
        f"{name}, seed {seed}" for name in (PLAIN, "closer") for seed in (1, 2)
    ]
    assert first["closer"]["bytes"] == pytest.approx(first[PLAIN]["bytes"], rel=0.05)
    assert first[PLAIN]["bytes"] > 100_000
    assert first["closer"]["reference"] == first[PLAIN]["value"]
    assert json.loads(json.dumps(first)) == first
    learner.show_learner(first)
    assert learner.bench_learner(["closer"], tmp_path / "kept", said.append) == first
    assert len(said) == 4
    # Another recipe is another run.
    recipe.write_text(small.replace("seed = 3", "seed = 4"))
    learner.bench_learner([PLAIN], tmp_path / "kept", said.append)
    assert len(said) == 6
