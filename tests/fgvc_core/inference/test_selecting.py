"""``fieldmark data select``, from a checkpoint and pictures to a list."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fgvc_core.cli import data_app
from fgvc_core.data.cache import cache_folder
from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.experiment import make_learner
from fgvc_core.inference.selecting import data_set, folder_candidates, select
from fgvc_core.inference.trained import load_trained
from fgvc_core.recipe import parse_recipe
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState

RECIPE = parse_recipe(
    "[data]\nimage_size = 32\nfieldmarks_train = 24\nfieldmarks_test = 12\nfieldmarks_pool = 15\n"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    from fgvc_core.data.fieldmarks.species import CLASS_NAMES

    learner = make_learner(RECIPE, 12)
    Checkpoints(folder, RECIPE, CLASS_NAMES).write("best", learner.tensors(), RunState("run"))
    return folder


@pytest.fixture
def pictures(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("a/one.png", "a/b/two.jpg", "three.png", ".hidden.png"):
        path = tmp_path / "new" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels_HWC = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels_HWC).save(path)
    (tmp_path / "new" / "notes.txt").write_text("no picture")
    return tmp_path / "new"


def run_select(*arguments):
    return CliRunner().invoke(data_app, ["select", *map(str, arguments)], catch_exceptions=False)


def test_every_picture_below_a_folder_is_a_candidate(run, pictures):
    found = json.loads(run_select(run, pictures, "--json").output)
    assert found["of"] == 3
    assert {p["id"] for p in found["picks"]} == {"a/one.png", "a/b/two.jpg", "three.png"}
    assert [p["rank"] for p in found["picks"]] == [1, 2, 3]
    margins = [p["score"] for p in found["picks"]]
    assert margins == sorted(margins)


def test_without_a_folder_it_is_the_pool_and_the_list_can_be_kept(run, tmp_path):
    out = tmp_path / "picks.csv"
    result = run_select(run, "--count", 4, "--method", "entropy", "--out", out)
    assert result.exit_code == 0
    assert "4 of 15 pictures, by entropy" in result.output
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert all("pool" in row["id"] for row in rows)
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)


def test_a_labelled_picture_is_covered(run):
    trained = load_trained(run)
    table = data_set(trained, None, cache_folder())
    # All but one of the candidates have a label: the other is what is farthest.
    candidates = table.where("pool")
    covered, told = candidates.take(range(1, len(candidates))), []
    (found,) = select(
        trained, candidates, covered, "core-set", 1, cache_folder(),
        tell=lambda *at: told.append(at),
    )  # fmt: skip
    assert found.id == candidates.ids[0]
    assert {(len(candidates),) * 2, (len(covered),) * 2} <= {*told}


def test_a_sites_own_data_are_found_through_its_settings(run, tmp_path):
    recipe = parse_recipe(RECIPE.to_toml(), ["data.name=folder", 'data.classes=["x","y"]'])
    learner = make_learner(recipe, 2)
    Checkpoints(tmp_path, recipe, ("x", "y")).write("best", learner.tensors(), RunState("r"))
    generator = np.random.default_rng(1)
    for name in ("train/x/1.png", "train/y/2.png", "test/x/3.png", "test/y/4.png", "pool/5.png"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    home = tmp_path / "home"
    home.mkdir()
    (home / "site.toml").write_text(f'name = "s"\n[data]\npath = "{tmp_path / "data"}"\n')
    found = json.loads(
        run_select(tmp_path, "--site", home, "--method", "core-set", "--json").output
    )
    assert [p["id"] for p in found["picks"]] == ["pool/5.png"]
    assert found["picks"][0]["score"] > 0


def test_what_cannot_be_chosen_from_is_refused_by_name(run, tmp_path):
    with pytest.raises(ConfigurationError, match="margn") as refused:
        run_select(run, "--method", "margn")
    assert "margin" in refused.value.remedy
    with pytest.raises(DataError, match="not a folder"):
        folder_candidates(tmp_path / "nowhere", ("a",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no unlabeled picture"):
        run_select(run, tmp_path / "empty")
    with pytest.raises(ConfigurationError, match=r"site\.toml"):
        run_select(run, "--site", tmp_path)
