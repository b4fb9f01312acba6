"""The contributors' pages, followed to the letter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "contributing"


def lines_of(page):
    """The shell lines of a page, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", (PAGES / page).read_text(), re.S)
    return [line for block in blocks for line in block.splitlines() if line]


def test_every_file_that_a_page_shows_is_there():
    shown = [
        name
        for page in PAGES.glob("*.md")
        for name in re.findall(r'--8<-- "([^"]+)"', page.read_text())
    ]
    assert len(shown) == 4, "a page shows its part, and one shows the recipe"
    assert all((ROOT / "docs" / name).is_file() for name in shown)


def test_the_templates_entry_points_name_its_modules():
    import tomllib

    project = tomllib.loads((PAGES / "plug-in" / "pyproject.toml").read_text())["project"]
    for points in project["entry-points"].values():
        for module in points.values():
            assert (PAGES / "plug-in" / (module.replace(".", "/") + ".py")).is_file()


@pytest.mark.slow
def test_the_page_of_a_loss_is_followed_to_the_letter(tmp_path):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    scripts = tmp_path / "bin"
    scripts.mkdir()
    for name in ("python", "fieldmark"):
        module = "" if name == "python" else " -m fieldmark"
        (scripts / name).write_text(f'#!/bin/sh\nexec {sys.executable}{module} "$@"\n')
        (scripts / name).chmod(0o755)
    # As into an environment of one's own, with nothing fetched.
    into = {"PIP_TARGET": str(tmp_path / "env"), "PYTHONPATH": str(tmp_path / "env"),
            "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}  # fmt: skip
    environment = {**os.environ, **into, "PATH": f"{scripts}:{os.environ['PATH']}"}
    told = ""
    for line in lines_of("loss.md"):
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        told += done.stdout
    assert "2 passed" in told
    assert (tmp_path / "runs" / "my-parts" / "report.html").is_file()
    assert "'damped' averages" in told
