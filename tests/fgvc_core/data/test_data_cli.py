import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from fgvc_core.cli import data_app
from fgvc_core.data.catalogue import load_table
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.data.writing import write_tree
from fgvc_core.errors import ConfigurationError, DataError

from .picture_trees import REPOSITORY, make_table, noise, write_cub, write_folders


def run(*arguments: object) -> Result:
    return CliRunner().invoke(data_app, [str(a) for a in arguments], terminal_width=100)


def rich_table() -> ExampleTable:
    """A table with everything that a table can know."""
    table = make_table([0, 1, 0, 1, 0, -1])
    return replace(
        table,
        ids=("train/x-0", "b", "c", "d", "e", "f"),
        splits=("train", "train", "train", "train", "test", "pool"),
        subjects=("s0", "s0", "s1", "s2", "s3", "s4"),
        class_names=("Ash Finch", "Fen, Wren"),
        columns={"site": tuple("aabbaa"), "subject": tuple("xxxxxx")},
        taxonomy=(("Finches", "Ash Finch"), ("Wrens", "Fen, Wren")),
        taxonomy_levels=("family", "species"),
        attributes_KA=np.array([[0.0, 1.0], [0.5, 0.25]], dtype=np.float32),
        attribute_names=("red crown", "bill"),
        parts_NP3=np.full((6, 1, 3), 0.5, dtype=np.float32),
        part_names=("bill",),
        boxes_N4=np.full((6, 4), 0.25, dtype=np.float32),
    )


def test_check_counts_a_sound_tree(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", ["robin", "wren"], each=5)
    write_folders(tmp_path / "test", ["robin"], each=1)
    result = run("check", tmp_path)
    assert result.exit_code == 0
    assert "robin" in result.stdout
    assert "No fault found." in result.stdout


def test_check_exits_3_with_the_faults_as_text_and_as_json(tmp_path: Path) -> None:
    write_cub(tmp_path)
    (tmp_path / "images" / "001.Small_Bird_1" / "Bird_1_0.jpg").unlink()
    shown = run("check", tmp_path, "--name", "cub")
    assert shown.exit_code == 3
    assert "Fault: 1 of 12 pictures is missing" in shown.stdout
    printed = run("check", tmp_path, "--name", "cub", "--json")
    assert printed.exit_code == 3
    values = json.loads(printed.stdout)
    assert values["missing"] == ["001.Small_Bird_1/Bird_1_0.jpg"]
    assert values["splits"] == {"train": 6, "test": 6, "pool": 0}


def test_check_passes_settings_on(tmp_path: Path) -> None:
    write_folders(tmp_path, ["turdus"], each=6)
    settings = ['data.classes=["robin"]', 'data.label_map={turdus="robin"}']
    result = run("check", tmp_path, "--json", *(a for s in settings for a in ("--set", s)))
    assert list(json.loads(result.stdout)["classes"]) == ["robin"]


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (("check", "nowhere"), DataError, "does not exist"),
        (("check", ".", "--name", "cubs"), ConfigurationError, "not a known data set"),
        (("check", ".", "--set", "data.sise=3"), ConfigurationError, "unknown key 'data.sise'"),
        (("partition", "no.toml"), ConfigurationError, "no recipe at"),
        (("make", "x", "--seed", "-1"), ConfigurationError, "fieldmarks_seed"),
    ],
)
def test_mistakes_are_told_by_fieldmarks_own_errors(
    arguments: tuple[str, ...],
    kind: type[Exception],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert type(result.exception) is kind
    assert said in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_cub(tmp_path / "birds", classes=14, each=20)
    path = tmp_path / "birds.toml"
    path.write_text(
        f"""
seed = 4
[data]
name = "cub"
path = "{tmp_path / "birds"}"
[partition]
scheme = "dirichlet"
sites = 3
alpha = 0.5
"""
    )
    return path


def test_partition_shows_a_row_for_each_site_and_draws_a_picture(
    recipe: Path, tmp_path: Path
) -> None:
    result = run("partition", recipe, "--out", tmp_path / "who.svg")
    assert result.exit_code == 0, result.exception
    assert all(f"site-{n}" in result.stdout for n in (1, 2, 3))
    ElementTree.parse(tmp_path / "who.svg")


def test_partition_previews_what_a_simulation_deals(recipe: Path) -> None:
    from fgvc_core.data.partition import partition
    from fgvc_core.recipe import load_recipe
    from fgvc_core.seeds import derive_seed

    values = json.loads(run("partition", recipe, "--json").stdout)
    resolved = load_recipe(recipe)
    train = load_table(resolved.data, recipe.parent).where("train")
    dealt = partition(train, resolved.partition, derive_seed(4, "partition"))
    assert {s: v["examples"] for s, v in values["sites"].items()} == {
        s: len(at) for s, at in dealt.items()
    }
    assert sum(sum(v["classes"].values()) for v in values["sites"].values()) == 140


def test_partition_counts_by_a_level_of_the_taxonomy_and_draws_kin_side_by_side(
    tmp_path: Path,
) -> None:
    recipe = tmp_path / "drawn.toml"
    recipe.write_text("[data]\nimage_size = 16\nfieldmarks_train = 60\nfieldmarks_test = 12\n")
    by_class = json.loads(run("partition", recipe, "--json").stdout)
    by_order = json.loads(run("partition", recipe, "--level", "order", "--json").stdout)
    assert 1 < len(by_order["classes"]) < len(by_class["classes"])
    assert len(by_class["sites"]) > 1
    for site, held in by_class["sites"].items():
        assert sum(by_order["sites"][site]["classes"].values()) == sum(held["classes"].values())
    run("partition", recipe, "--out", tmp_path / "who.svg")
    assert '<rect class="family"' in (tmp_path / "who.svg").read_text()
    result = run("partition", recipe, "--level", "ordre")
    assert isinstance(result.exception, ConfigurationError)
    assert "Did you mean" in str(result.exception)


def test_partition_takes_settings_and_names_a_file_that_it_cannot_write(
    recipe: Path, tmp_path: Path
) -> None:
    values = json.loads(run("partition", recipe, "--set", "partition.sites=7", "--json").stdout)
    assert len(values["sites"]) == 7
    result = run("partition", recipe, "--out", tmp_path / "no" / "who.svg")
    assert isinstance(result.exception, ConfigurationError)
    assert "who.svg" in str(result.exception)


@pytest.mark.parametrize("name", ["folder", "manifest"])
def test_a_written_tree_reads_back_as_the_same_table(tmp_path: Path, name: str) -> None:
    table = rich_table()
    write_tree(table, tmp_path / "birds")
    settings = DataSettings(name=name, path=str(tmp_path / "birds"), classes=table.class_names)
    read = load_table(settings, tmp_path)
    position = {path.removesuffix(".png").split("/")[-1]: i for i, path in enumerate(read.ids)}
    for i, own in enumerate(("train_x-0", "b", "c", "d", "e", "f")):
        at = position[own]
        assert read.labels_N[at] == table.labels_N[i]
        assert read.splits[at] == table.splits[i]
        assert (read.picture(at) == noise(i)).all()
        if name == "manifest":
            assert read.subjects[at] == table.subjects[i]
            assert read.columns["site"][at] == table.columns["site"][i]


def test_a_written_tree_has_parts_boxes_attributes_and_taxonomy(tmp_path: Path) -> None:
    write_tree(rich_table(), tmp_path / "birds")
    root = tmp_path / "birds"
    assert json.loads((root / "taxonomy.json").read_text())["levels"] == ["family", "species"]
    attributes = (root / "attributes.csv").read_text().splitlines()
    assert attributes == ["class,red crown,bill", "Ash Finch,0,1", '"Fen, Wren",0.5,0.25']
    parts = (root / "parts.csv").read_text().splitlines()
    assert parts[1] == "train/Ash Finch/train_x-0.png,bill,0.5000,0.5000,0"
    assert len(parts) == len((root / "boxes.csv").read_text().splitlines()) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]


def test_a_tree_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    class Broken:
        def picture(self, row: int, size: int | None = None) -> np.ndarray:
            if row == 3:
                raise DataError("The picture 3 is damaged.")
            return noise(row)

    table = replace(rich_table(), source=Broken())
    with pytest.raises(DataError):
        write_tree(table, tmp_path / "birds")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("option", "value"), [("--size", "8"), ("--train", "5"), ("--test", "6")])
def test_a_number_out_of_range_is_refused_by_its_options_name(option, value, tmp_path) -> None:
    result = run("make", tmp_path / "birds", option, value)
    assert result.exit_code == 2
    assert f"'{option}'" in result.output
    assert not (tmp_path / "birds").exists()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    result = run("make", tmp_path, "--train", "20", "--test", "10")
    assert isinstance(result.exception, ConfigurationError)
    assert "is not empty" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_make_writes_the_embedded_set_that_check_finds_sound(tmp_path: Path) -> None:
    folder, sheet = tmp_path / "birds", tmp_path / "sheet.png"
    asked = ("--size", 32, "--train", 60, "--test", 30, "--pool", 5, "--seed", 7)
    made = run("make", folder, *asked, "--sheet", sheet)
    assert made.exit_code == 0, made.exception
    values = json.loads(run("check", folder, "--name", "manifest", "--json").stdout)
    assert values["splits"] == {"train": 60, "test": 30, "pool": 5}
    assert values["faults"] == []
    assert values["subjects"] < 95
    assert "--name manifest checks it so" in run("check", folder).stdout
    for name in ("parts.csv", "attributes.csv", "taxonomy.json"):
        assert (folder / name).stat().st_size > 50
    with Image.open(sheet) as image:
        assert image.width > 200
    read = load_table(DataSettings(name="folder", path=str(folder)), tmp_path)
    assert read.picture(0).shape == (32, 32, 3)


@pytest.mark.parametrize("command", ["make", "check", "partition"])
def test_each_command_explains_itself_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: fieldmark data {command} " in result.stdout


def test_help_loads_nothing_heavy() -> None:
    program = """
import sys
from typer.testing import CliRunner
from fgvc_core.cli import data_app
for command in ("make", "check", "partition"):
    assert CliRunner().invoke(data_app, [command, "--help"]).exit_code == 0
heavy = {"torch", "numpy", "PIL", "datasets", "flwr_datasets", "pydantic"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)
