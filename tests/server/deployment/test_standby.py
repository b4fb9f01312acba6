"""A coordinator without a run holds no torch; an announced run brings the executor."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from imports_lab import loaded

import fieldmark.server.deployment.executor as executors
from fieldmark.server.deployment.executor import Executor
from fieldmark.server.deployment.standby import EXECUTOR


@pytest.mark.parametrize(
    ("process", "found"),
    [
        ("standby", []),
        ("pages", []),
        ("serving", ["flwr"]),
        ("processes", ["flwr"]),
        # Its database comes with Flower's own command.
        ("superlink", ["flwr"]),
    ],
)
def test_the_processes_of_a_coordinator_that_only_wait_import_no_torch(process, found):
    assert loaded(f"fieldmark.server.deployment.{process}") == found


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "state" / "loopback").mkdir(parents=True)
    (tmp_path / "state" / "loopback" / "ca.pem").write_bytes(b"")
    (tmp_path / "secret").write_bytes(b"")
    (tmp_path / "runs").mkdir()
    return tmp_path


def test_it_becomes_the_executor_when_a_run_is_announced(folder):
    command = (sys.executable, "-P", "-m", "fieldmark.server.deployment.standby", str(folder))
    with subprocess.Popen(command) as process:
        try:
            time.sleep(0.6)
            assert process.poll() is None
            assert EXECUTOR not in line_of(process)
            (folder / "state" / "announcement.json").write_text("{}")
            deadline = time.monotonic() + 30.0
            while EXECUTOR not in line_of(process):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.kill()


def line_of(process):
    return Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")


class Client:
    def close(self):
        pass


@pytest.fixture
def served(folder, monkeypatch):
    """Serves with a clock of its own; what happens at each look is given, and when it ends."""

    def serve(looks):
        now, asked, stood_by = [1000.0], [], []

        def tasks():
            while True:
                asked.append(now[0])
                yield "", 0, 0

        def sleep(seconds):
            now[0] += seconds
            looks(now[0] - 1000.0)

        monkeypatch.setattr(executors, "acquire_work", lambda *args: (Client(), tasks()))
        monkeypatch.setattr(executors.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(executors.time, "sleep", sleep)
        Executor(folder, lambda: stood_by.append(now[0] - 1000.0)).serve()
        return [at - 1000.0 for at in asked], stood_by

    return serve


def test_the_executor_gives_its_memory_back_only_some_time_after_the_run(served, folder):
    announced = folder / "state" / "announcement.json"
    announced.write_text("{}")

    def look(second):
        if second > 20.0:
            announced.unlink(missing_ok=True)

    asked, (stood_by,) = served(look)
    assert 20.0 + executors.WARM_S < stood_by < 25.0 + executors.WARM_S
    # A run that is announced is taken at once; without one, the SuperLink is asked seldom.
    assert sum(at < 20.0 for at in asked) > 60
    rest = [at for at in asked if at > 21.0]
    assert 100 < len(rest) <= executors.WARM_S / executors.SELDOM_S


def test_an_executor_with_a_run_under_way_never_stands_by(served, folder, monkeypatch):
    monkeypatch.setattr(Executor, "_reap", lambda self: self._children.setdefault(0, "token"))

    class Over(Exception):
        pass

    def look(second):
        if second > 2 * executors.WARM_S:
            raise Over

    monkeypatch.setattr(executors.os, "kill", lambda child, number: None)
    with pytest.raises(Over):
        served(look)
