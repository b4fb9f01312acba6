"""What the documents say of tests, files and commands is so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
from house import file_map
from tests_recipe import TINY

import fieldmark.cli

ROOT = Path(__file__).parents[2]
GENERATED = {f"docs/reference/{name}.md" for name in ("recipe", "commands", "python", "results")}
"""Pages that 'make docs' makes from the code (docs/site.py)."""

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def named_tests():
    for page in PAGES:
        for path, name in re.findall(r"`(?:tests/)?([\w/]+\.py)(?:::(\w+))?`", page.read_text()):
            if Path(path).name.startswith("test_"):
                yield page.name, path, name


def test_every_test_that_a_page_names_is_there():
    named = list(named_tests())
    assert len(named) > 40
    missing = []
    for page, path, name in named:
        file = ROOT / "tests" / path
        if not file.is_file() or (name and f"def {name}(" not in file.read_text()):
            missing.append(f"{page}: {path}::{name}")
    assert missing == []


def test_every_link_between_pages_leads_somewhere():
    dead = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            there = Path(os.path.normpath(page.parent / target))
            generated = there.relative_to(ROOT).as_posix() in GENERATED
            if not generated and not (page.parent / target).exists():
                dead.append(f"{page.name}: {target}")
    assert dead == []


def commands_in_pages():
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.S):
            lines = block.replace("\\\n", " ").splitlines()
            for line in lines:
                words = line.split("#")[0].split()
                if words[:1] == ["fieldmark"]:
                    yield pytest.param(words[1:], id=f"{page.stem}: {' '.join(words)[:60]}")


@pytest.mark.parametrize("words", list(commands_in_pages()))
def test_every_command_on_a_page_exists_with_its_options(words):
    command = typer.main.get_command(fieldmark.cli.app)
    context = click.Context(command)
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, name
        command = found
    known = {option for parameter in command.params for option in parameter.opts}
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    assert [option for option in options if option not in known] == []


@pytest.mark.slow
def test_the_python_on_the_first_page_runs(tmp_path):
    from drawn_trees import disks

    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.toml").write_text(TINY)
    disks(tmp_path / "new-pictures", each=2)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    score, *answers = done.stdout.splitlines()
    assert score.endswith("report.html")
    assert len(answers) == 6


def test_the_map_of_files_is_what_the_docstrings_say():
    assert (ROOT / "docs" / "map.md").read_text() == file_map(), "run: make map"


def test_every_source_file_that_a_page_names_is_there():
    dead = []
    for page in PAGES:
        for path in re.findall(
            r"`((?:client|server|simulations|fgvc_core)/[\w/]+\.\w+)", page.read_text()
        ):
            # Tests of a room are named by the same folders.
            if not (ROOT / path).exists() and not (ROOT / "tests" / path).exists():
                dead.append(f"{page.name}: {path}")
    assert dead == []
