"""The two guides, command by command, as a coordinator and a site's engineer would type them."""

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = ("coordinator.md", "site-engineer.md")


def commands():
    """(number, command) of every numbered line in both guides, in order of numbers."""
    found = []
    for guide in GUIDES:
        found += re.findall(r"^(fieldmark .*?)  # step (\d+)$", (DOCS / guide).read_text(), re.M)
    return sorted((int(number), command) for command, number in found)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_commands_are_numbered_from_one_up_without_a_gap():
    assert [number for number, _ in commands()] == list(range(1, 14))


def test_both_guides_work_as_they_are_written(tmp_path):
    text = (DOCS / "coordinator.md").read_text()
    recipe = re.search(r"```toml\n(# birds.toml\n.*?)```", text, re.S).group(1)
    (tmp_path / "birds.toml").write_text(recipe)
    run(tmp_path, "data make birds --train 40 --test 12")
    here = {
        "--host fl.example.org": f"--host 127.0.0.1 --listen 127.0.0.1 --port {free_port()}",
        "/data/birds": str(tmp_path / "birds"),
        " lyon.kit": " federation/kits/lyon.kit",
    }
    said = {}
    try:
        for number, command in commands():
            for written, actual in here.items():
                command = command.replace(written, actual)
            said[number] = run(tmp_path, command.removeprefix("fieldmark "))
    finally:
        for stop in ("site stop lyon", "server stop federation"):
            run(tmp_path, stop, check=False)
    assert ": up, SuperLink serving;" in said[8]
    assert "lyon" in said[8]
    assert "report:" in said[9]
    run_dir = tmp_path / "federation" / "runs" / "birds"
    assert (run_dir / "report.html").is_file()
    assert (run_dir / "checkpoints" / "best.safetensors").is_file()
    for level in ("failed", "not reached"):
        assert level not in said[6]


def run(folder, command, check=True):
    done = subprocess.run(
        [sys.executable, "-m", "fieldmark", *shlex.split(command)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if check:
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr
