"""The demo asks nobody: with no network it makes no attempt to reach a machine, nor its own."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STRACE, UNSHARE = shutil.which("strace"), shutil.which("unshare")
CUT = [UNSHARE, "--map-root-user", "--net"]
TRACED = [STRACE, "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg"]
ATTEMPT = re.compile(r"(?:connect|sendto|sendmsg)\(.*AF_INET")


def can_watch():
    """Whether this account may have a network without a way out, and trace what runs in it."""
    probe = [*CUT, *TRACED, "-o", os.devnull, "true"]
    return (
        None not in (UNSHARE, STRACE) and not subprocess.run(probe, capture_output=True).returncode
    )


pytestmark = pytest.mark.skipif(
    not can_watch(), reason="needs strace, and a namespace without a network"
)


def attempts(command, folder, environment):
    """Calls of a command and all its processes that would reach a machine, with no network."""
    calls = folder / "calls"
    done = subprocess.run(
        [*CUT, *TRACED, "-o", calls, *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in calls.read_text().splitlines() if ATTEMPT.search(line)]


def test_what_make_demo_runs_makes_no_connection_attempt(tmp_path):
    told = subprocess.run(
        ["make", "--no-print-directory", "-n", "demo"], cwd=ROOT, capture_output=True, text=True
    )
    words = shlex.split(told.stdout.strip().splitlines()[-1])
    name = next(n for n, word in enumerate(words) if word.endswith("/fieldmark"))
    environment = dict(word.split("=", 1) for word in words[:name])
    # The same with fewer rounds and pictures, and by this interpreter.
    recipe = [ROOT / word if word.endswith(".toml") else word for word in words[name + 1 :]]
    fewer = ["federation.rounds=1", "data.fieldmarks_train=240", "data.fieldmarks_test=48",
             "partition.min_examples=10"]  # fmt: skip
    sets = [word for one in fewer for word in ("--set", one)]
    command = [sys.executable, "-m", "fieldmark", *recipe, *sets]
    assert attempts(command, tmp_path, environment) == []
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()


def test_an_attempt_is_seen(tmp_path):
    code = "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"
    assert len(attempts([sys.executable, "-c", code], tmp_path, {})) == 1
