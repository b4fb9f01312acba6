"""Ctrl-C in the middle of a round, and going on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tests_recipe import TINY

from fgvc_core.errors import ConfigurationError
from fgvc_core.recipe import parse_recipe
from fieldmark.server.run_log.checkpoint import read_checkpoint
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.simulate import simulate

SETS = ("--set=federation.rounds=6", "--set=data.fieldmarks_train=300")
PATIENCE_S = 600


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
    # A resumed run has one more roll call in each ledger; replies hold the ledger's length, and
    # nine entries have a digit less than ten.
    differs = ("seconds", "bytes_up")
    history = [{k: v for k, v in h.items() if k not in differs} for h in metrics["history"]]
    return tensors, history, {k: metrics[k] for k in ("top1", "macro_f1", "best_round", "stopped")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A recipe's file, and the run of it that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.toml").write_text(TINY)
    simulate(Simulation(planned_in(folder / "tiny.toml"), folder / "run", quiet=True))
    return folder / "tiny.toml", folder / "run"


def planned_in(recipe):
    """The recipe that the command runs."""
    return parse_recipe(recipe.read_text(), [word.removeprefix("--set=") for word in SETS])


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_stopped_run_goes_on_to_the_same_bits(whole, tmp_path, sign):
    recipe, unstopped = whole
    stopped = tmp_path / "stopped"
    process = subprocess.Popen(
        command(recipe, "--out", stopped, *SETS),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell has what it starts in the background ignore Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + PATIENCE_S
    while rounds_begun(stopped) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    # A terminal's Ctrl-C reaches every process of the group.
    os.killpg(process.pid, sign) if sign == signal.SIGINT else process.send_signal(sign)
    told = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 6, told
    assert "--resume" in told
    assert "Traceback" not in told
    _, metadata = read_checkpoint(stopped / "checkpoints" / "last.safetensors")
    assert json.loads(metadata["state"])["round"] in range(1, 6)
    assert json.loads((stopped / "metrics.json").read_text())["stopped"] == "interrupted"
    if sign == signal.SIGINT:
        # As it was told to; the other one goes on in this process.
        again = command(recipe, "--out", stopped, "--resume", *SETS)
        subprocess.run(again, check=True, capture_output=True)
    else:
        simulate(Simulation(planned_in(recipe), stopped, resume=True, quiet=True))
    assert final(stopped) == final(unstopped)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("federation.rounds=7", "federation.rounds was 6, is 7"),
        # Sites are not told of the partition: the recipe's digest does not have it.
        ("partition.sites=4", "partition.sites was 3, is 4"),
    ],
)
def test_another_recipe_is_not_resumed(whole, changed, said):
    recipe, run = whole
    sets = [*(word.removeprefix("--set=") for word in SETS), changed]
    plan = Simulation(parse_recipe(recipe.read_text(), sets), run, resume=True)
    with pytest.raises(ConfigurationError) as caught:
        simulate(plan)
    assert caught.value.exit_code == 2
    assert said in str(caught.value)
