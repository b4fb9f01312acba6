"""What a simulation starts ends with it, whichever of its processes is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests_recipe import TINY

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
GONE_WITHIN_S = 5.0


def parents():
    """Process id -> parent's process id, of all processes that have not ended."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found[int(path.parent.name)] = int(parent)
    return found


def below(root):
    """Processes started by a process, and by these in turn."""
    of, found, front = parents(), set(), {root}
    while front:
        front = {pid for pid, parent in of.items() if parent in front}
        found |= front
    return found


def words(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")


def left(pids):
    """Those of some processes that live on after a few seconds."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while (alive := pids & parents().keys()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return {pid: words(pid) for pid in alive}


class Running:
    """A simulation in its rounds, with every process that belongs to it."""

    def __init__(self, folder):
        (folder / "tiny.toml").write_text(TINY)
        self.out = folder / "run"
        sets = ("--set=federation.rounds=200", "--set=data.fieldmarks_train=300")
        command = ["simulate", str(folder / "tiny.toml"), "--out", str(self.out), *sets]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fieldmark", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        events, deadline = self.out / "events.jsonl", time.monotonic() + 120
        while not (events.exists() and "round_finished" in events.read_text()):
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < deadline, "waited in vain for a round"
            time.sleep(0.05)
        self.all = {self.process.pid} | below(self.process.pid)
        server = [pid for pid in self.all if "forkserver" in words(pid) and self._own(pid)]
        self.fork_server = server[0]
        self.tracker = next(pid for pid in self.all if "resource_tracker" in words(pid))
        self.workers = {p for p, parent in parents().items() if parent == self.fork_server}

    def _own(self, pid):
        return parents()[pid] == self.process.pid


@pytest.fixture
def running(tmp_path):
    found = Running(tmp_path)
    yield found
    for pid in found.all & parents().keys():
        os.kill(pid, signal.SIGKILL)
    found.process.wait()
    found.process.stdout.close()


def test_nothing_outlives_a_killed_simulation_and_its_pipe_ends(running):
    assert running.workers
    running.process.kill()
    # Reading to the end of the pipe: it would hang while a worker holds the other end.
    running.process.communicate(timeout=GONE_WITHIN_S)
    assert left(running.all) == {}


@pytest.mark.parametrize("which", ["worker", pytest.param("fork_server", marks=pytest.mark.slow)])
def test_a_killed_worker_ends_the_simulation_with_a_message(running, which):
    os.kill(running.fork_server if which == "fork_server" else min(running.workers), signal.SIGKILL)
    said, _ = running.process.communicate(timeout=30)
    assert running.process.returncode == 6
    assert "A worker process died." in said
    assert "Traceback" not in said
    assert left(running.all) == {}


@pytest.mark.slow
def test_a_simulation_goes_on_without_its_resource_tracker_and_leaves_nothing(running):
    os.kill(running.tracker, signal.SIGKILL)
    time.sleep(0.5)
    running.process.send_signal(signal.SIGTERM)
    said, _ = running.process.communicate(timeout=30)
    assert running.process.returncode == 6, said
    assert "The run was stopped" in said
    assert left(running.all) == {}


def test_a_second_interrupt_ends_at_once(running):
    for worker in running.workers:
        # Nothing that was begun can be finished: the first Ctrl-C waits for it.
        os.kill(worker, signal.SIGSTOP)
    running.process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert running.process.poll() is None
    running.process.send_signal(signal.SIGINT)
    running.process.wait(GONE_WITHIN_S)
    assert running.process.returncode == 6
    for worker in running.workers:
        os.kill(worker, signal.SIGCONT)
    said, _ = running.process.communicate(timeout=GONE_WITHIN_S)
    assert said.endswith("Ended at once.\n"), said
    assert left(running.all) == {}
