"""Ctrl-C in the middle of a round, and going on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fieldmark.server.run_log.checkpoint import read_checkpoint


def command(*arguments):
    return [sys.executable, "-m", "fieldmark", "simulate", *map(str, arguments)]


def rounds_begun(run):
    path = run / "events.jsonl"
    if not path.exists():
        return 0
    lines = path.read_text().splitlines()
    return sum(json.loads(line)["event"] == "round_started" for line in lines if line.endswith("}"))


def final(run):
    tensors = {}
    for name in ("last", "best"):
        found, _ = read_checkpoint(run / "checkpoints" / f"{name}.safetensors")
        tensors |= {f"{name} {k}": v.tobytes() for k, v in found.items()}
    metrics = json.loads((run / "metrics.json").read_text())
    history = [{k: v for k, v in h.items() if k != "seconds"} for h in metrics["history"]]
    return tensors, history, {k: metrics[k] for k in ("top1", "macro_f1", "best_round", "stopped")}


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_stopped_run_goes_on_to_the_same_bits(tiny_file, tmp_path, sign):
    sets = ["--set=federation.rounds=3", "--set=data.fieldmarks_train=300"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    subprocess.run(command(tiny_file, "--out", whole, *sets), check=True, capture_output=True)
    process = subprocess.Popen(
        command(tiny_file, "--out", stopped, *sets),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while rounds_begun(stopped) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    # A terminal's Ctrl-C reaches every process of the group.
    os.killpg(process.pid, sign) if sign == signal.SIGINT else process.send_signal(sign)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 6, told
    assert "--resume" in told
    assert "Traceback" not in told
    _, metadata = read_checkpoint(stopped / "checkpoints" / "last.safetensors")
    assert json.loads(metadata["state"])["round"] in (1, 2)
    assert json.loads((stopped / "metrics.json").read_text())["stopped"] == "interrupted"
    subprocess.run(
        command(tiny_file, "--out", stopped, "--resume", *sets), check=True, capture_output=True
    )
    assert final(stopped) == final(whole)


def test_another_recipe_is_not_resumed(tiny_file, tmp_path):
    out = tmp_path / "run"
    one = ["--set=federation.rounds=1"]
    subprocess.run(command(tiny_file, "--out", out, *one), check=True, capture_output=True)
    two = command(tiny_file, "--out", out, "--resume", "--set=federation.rounds=2")
    done = subprocess.run(two, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "federation.rounds was 1, is 2" in done.stderr.replace("\n", " ")
