import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import fgvc_core
import fieldmark.cli
from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.protocol.code import code_digest
from fgvc_core.recipe import parse_recipe
from fieldmark.simulations.compare import compare
from fieldmark.simulations.comparing.others import union
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, split_site

ROOT = Path(__file__).parents[2]
COMMANDS = (["new"], ["recipes"], ["explain-recipe"], ["doctor"],
            ["simulate"], ["compare"], ["sweep"], ["report"], ["bench"], ["data", "make"],
            ["predict"], ["evaluate"], ["export", "kit"], ["export", "read-reply"], ["site", "new"],
            ["site", "status"], ["site", "page"], ["site", "decline"],
            ["explain"], ["export", "onnx"], ["export", "browser"], ["export", "folder"],
            ["site", "validate"],
            ["data", "check"], ["data", "partition"], ["site", "budget"], ["site", "approve"],
            ["site", "report"], ["site", "audit"], ["site", "reading"],
            ["site", "weights", "add"], ["site", "weights", "list"], ["site", "ledger", "recover"],
            ["server", "ledger-statement"], ["site", "key"], ["site", "join"],
            ["site", "check"], ["site", "up"], ["site", "new-key"], ["site", "stop"],
            ["server", "init"], ["server", "add-site"], ["server", "remove-site"],
            ["server", "rotate-key"], ["server", "replace-key"], ["server", "renew"],
            ["server", "up"], ["server", "stop"], ["server", "run"], ["server", "resume"],
            ["server", "attach"], ["server", "cancel"], ["server", "status"],
            ["server", "accept-units"])  # fmt: skip


def test_help_opens_no_heavy_room():
    code = (
        "import sys, fieldmark.cli\n"
        "try: fieldmark.cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'flwr', 'timm', 'torchvision', 'ray', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_commands_help_has_an_example(command):
    result = CliRunner().invoke(fieldmark.cli.app, [*command, "--help"])
    assert result.exit_code == 0
    assert f"fieldmark {' '.join(command)}" in re.sub(r"\s+", " ", result.output)


@pytest.mark.parametrize(("command", "section"), [("join", "[data]"), ("page", "[page]")])
def test_the_name_of_a_section_is_not_taken_for_markup(command, section):
    told = CliRunner().invoke(fieldmark.cli.app, ["site", command, "--help"]).output
    assert section in told


def test_alone_it_shows_where_to_start_with_commands_that_exist():
    told = CliRunner().invoke(fieldmark.cli.app, [])
    assert told.exit_code == 0
    named = re.findall(r"fieldmark ((?:server |site )?[a-z-]+)", told.output)
    assert {"new", "recipes", "simulate", "predict", "server init", "site key"} <= {*named}
    for name in named:
        assert CliRunner().invoke(fieldmark.cli.app, [*name.split(), "--help"]).exit_code == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell):
    asked = {
        "_FIELDMARK_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "fieldmark si",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "fieldmark si",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    told = CliRunner().invoke(fieldmark.cli.app, [], prog_name="fieldmark", env=asked)
    assert "simulate" in told.output
    assert "site" in told.output
    assert "predict" not in told.output


def test_the_exit_codes_are_in_the_help():
    told = CliRunner().invoke(fieldmark.cli.app, ["--help"]).output
    assert "Exit codes: 0 done, 2 wrong usage" in re.sub(r"\s+", " ", told)


NOT_THERE = (
    "report {}",
    "predict {} pictures",
    "evaluate {}",
    "explain {} picture.png",
    "export onnx {} --out model.onnx",
    "export folder {} --out folder",
    "export kit {} --out model.kit",
    "export read-reply {} reply.json",
    "data select {} pictures",
    "simulate {}",
    "compare {}",
    "explain-recipe {}",
    "sweep {} --over train.lr=0.1",
    "site budget {}",
    "site report {}",
    "site check {}",
    "site status {}",
    "site up {}",
    "server status {}",
    "server up {}",
    "server run {} recipe.toml",
)


@pytest.mark.parametrize("command", NOT_THERE)
def test_a_path_that_is_not_there_has_one_exit_code(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "birds" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "birds" / "recipe.toml").write_text("")
    # Whatever else is named is there, so that the wrong path is what ends the command.
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    done = CliRunner().invoke(fieldmark.cli.app, command.format("runs/brids").split())
    assert isinstance(done.exception, ConfigurationError), done.output
    assert done.exception.exit_code == 2
    assert "runs/brids" in done.exception.what
    if done.exception.what.startswith(("There is no run", "There is no checkpoint")):
        assert "Did you mean 'runs/birds'?" in done.exception.remedy


@pytest.mark.parametrize("command", ["data check {}", "new mine --data {}"])
def test_pictures_that_are_not_there_are_missing_data(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(fieldmark.cli.app, command.format("nowhere").split())
    assert isinstance(done.exception, DataError), done.output
    assert "nowhere" in done.exception.what


def test_it_runs_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fieldmark", "--help"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0


def test_json_is_the_only_thing_on_standard_output(tiny_file, tmp_path):
    command = [sys.executable, "-m", "fieldmark", "simulate", str(tiny_file), "--json"]
    sets = ["--set=federation.rounds=1", "--set=partition.sites=2"]
    done = subprocess.run(
        [*command, *sets], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    metrics = json.loads(done.stdout)
    assert metrics["run_dir"] == "runs/tiny"
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()
    assert "round 1/1" in done.stderr
    assert "Warning" not in done.stderr


def test_compare_states_all_three_on_one_test_split(tiny, tmp_path):
    recipe = parse_recipe(tiny.to_toml(), ["federation.rounds=1"])
    result = compare(Simulation(recipe, tmp_path / "run"))
    assert set(result["local"]) == {"site-1", "site-2", "site-3"}
    for scores in (result["federated"], result["pooled"], result["local_mean"]):
        assert 0 <= scores["top1"] <= 1
        assert 0 <= scores["macro_f1"] <= 1
    mean = sum(s["top1"] for s in result["local"].values()) / 3
    assert result["local_mean"]["top1"] == pytest.approx(mean)
    assert json.loads((tmp_path / "run" / "compare.json").read_text()) == result
    assert "Pooled in one place" in (tmp_path / "run" / "report.html").read_text()


def test_the_pooled_model_sees_what_the_sites_see_and_nothing_of_the_test_split(tiny, tmp_path):
    setting = deal(tiny, tmp_path)
    splits = [split_site(tiny, setting, site) for site in setting.rows]
    train, held = (union(setting, list(setting.rows), tiny, side) for side in (0, 1))
    assert len(train) == sum(len(split[0]) for split in splits)
    assert sorted([*train.ids, *held.ids]) == sorted(setting.table.where("train").ids)
    assert not set(train.subjects) & set(held.subjects)
    sites = [set(setting.site_table(site).subjects) for site in setting.rows]
    assert sum(map(len, sites)) == len(set.union(*sites))


def test_the_version_is_in_one_place_and_told_with_the_codes_digest():
    told = CliRunner().invoke(fieldmark.cli.app, ["--version"])
    assert told.exit_code == 0
    assert told.output == f"fieldmark {fgvc_core.__version__} (code {code_digest()})\n"
    assert importlib.metadata.version("fieldmark") == fgvc_core.__version__


def test_a_mistyped_command_is_corrected_once_and_a_folder_leads_to_its_recipe(tmp_path):
    said = CliRunner().invoke(fieldmark.cli.app, ["simulat"])
    assert said.output.count("Did you mean 'simulate'?") == 1
    (tmp_path / "recipe.toml").touch()
    said = CliRunner().invoke(fieldmark.cli.app, ["simulate", str(tmp_path)])
    assert f"'{tmp_path}/recipe.toml'" in said.exception.remedy
    said = CliRunner().invoke(fieldmark.cli.app, ["report", str(tmp_path / "none")])
    assert "Errno" not in said.exception.what
