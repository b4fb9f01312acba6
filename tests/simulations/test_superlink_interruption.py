"""Ctrl-C under --engine superlink: everything that was started ends, and the run goes on later."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from deployment_lab import models_inprocess

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

RECIPE = """
name = "tiny"
seed = 3
[data]
name = "fieldmarks"
image_size = 32
fieldmarks_train = 60
fieldmarks_test = 24
[partition]
scheme = "iid"
sites = 2
[model]
backbone = "fieldmark_nano"
[train]
batch_size = 16
[federation]
rounds = 3
[evaluate]
pixel_baseline = false
"""
PATIENCE_S = 600


def simulate(recipe, out, *more):
    return [sys.executable, "-m", "fieldmark", "simulate", str(recipe), "--engine", "superlink",
            "--out", str(out), *more]  # fmt: skip


def events(run, kind):
    path = run / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [e for e in map(json.loads, lines) if e["event"] == kind]


def alive(folder):
    """Processes whose command line names something in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words:
            found.append(words.replace("\0", " "))
    return found


def test_ctrl_c_ends_all_processes_and_the_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    own = tmp_path / "temporary"
    own.mkdir()
    monkeypatch.setenv("TMPDIR", str(own))
    recipe, run = tmp_path / "tiny.toml", tmp_path / "run"
    recipe.write_text(RECIPE)
    process = subprocess.Popen(
        simulate(recipe, run),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell has what it starts in the background ignore Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + PATIENCE_S
    while not any(e["round"] == 2 for e in events(run, "round_started")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(alive(own)) >= 8
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 6, told
    assert "--resume" in told
    assert "Traceback" not in told
    assert alive(own) == []
    assert list(own.glob("fieldmark-*")) == []
    assert json.loads((run / "metrics.json").read_text())["stopped"] == "interrupted"
    subprocess.run(
        simulate(recipe, run, "--resume"), check=True, capture_output=True, timeout=PATIENCE_S
    )
    models = [e["model"] for e in events(run, "round_finished")]
    assert models == models_inprocess(RECIPE, tmp_path / "reference", ["site-1", "site-2"])
