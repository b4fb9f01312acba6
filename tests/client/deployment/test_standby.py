"""A site without a message holds no torch; the message brings the runner, and silence ends it."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
from imports_lab import loaded

import fieldmark.client.deployment.runner as runners
from fieldmark.client.deployment.runner import Runner
from fieldmark.client.deployment.standby import RUNNER, wake_file


@pytest.mark.parametrize("process", ["standby", "supervisor"])
def test_the_processes_of_a_site_that_only_wait_import_neither_torch_nor_flower(process):
    assert loaded(f"fieldmark.client.deployment.{process}") == []


def test_the_node_imports_no_torch():
    assert set(loaded("fieldmark.client.deployment.supernode")) <= {"flwr", "sqlalchemy"}


@pytest.fixture
def waiting(tmp_path):
    """Starts the program, with the notifications that need no attention."""
    started = []

    def start(*seen):
        arguments = (tmp_path, tmp_path / "supernode", tmp_path / "secret", *seen)
        command = ("-P", "-m", "fieldmark.client.deployment.standby", *map(str, arguments))
        process = subprocess.Popen((sys.executable, *command), stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline().startswith("ready")
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def is_runner(process, within_s=30.0):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if RUNNER in Path(f"/proc/{process.pid}/cmdline").read_text().split("\0"):
            return True
        time.sleep(0.05)
    return False


def test_it_becomes_the_runner_when_the_node_has_a_message(waiting, tmp_path):
    process = waiting()
    assert not is_runner(process, 0.6)
    wake_file(tmp_path / "supernode").notify()
    assert is_runner(process)


def test_a_message_that_came_before_it_was_there_counts(waiting, tmp_path):
    wake_file(tmp_path / "supernode").notify()
    assert not is_runner(waiting(1), 0.6)
    assert is_runner(waiting())


class Called(Exception):
    pass


def served(monkeypatch, tmp_path, tokens, warm_s, stand_by=lambda seen: None):
    monkeypatch.setattr(runners, "acquire_tasks", lambda socket, secret: iter(tokens()))
    monkeypatch.setattr(runners, "WARM_S", warm_s)
    answered = []
    runner = Runner(tmp_path, tmp_path / "supernode", b"", stand_by)
    monkeypatch.setattr(runner, "_answer", answered.append)
    monkeypatch.setattr(runner, "_tell_of_pending", lambda: None)
    with contextlib.suppress(Called):
        runner.serve()
    return answered


def test_the_runner_gives_its_memory_back_only_after_silence(monkeypatch, tmp_path):
    wake = wake_file(tmp_path / "supernode")
    wake.notify()
    stood_by = []

    def tokens():
        yield "a message"
        # One that comes from here on is news to the stand-by.
        wake.notify()
        yield ""

    assert served(monkeypatch, tmp_path, tokens, -1.0, stood_by.append) == ["a message"]
    assert stood_by == [1]


def test_the_runner_takes_a_message_as_soon_as_the_node_says_so(monkeypatch, tmp_path):
    wake = wake_file(tmp_path / "supernode")

    def tokens():
        # It comes between this call's answer and the wait for the next one.
        wake.notify()
        yield ""
        yield "a message"
        raise Called

    started = time.monotonic()
    assert served(monkeypatch, tmp_path, tokens, 300.0) == ["a message"]
    assert time.monotonic() - started < runners.POLL_S / 2


SILENT = """
import sys
import fieldmark.client.deployment.runner as runners
runners.WARM_S = -1.0
runners.main()
"""


@pytest.mark.slow
def test_a_runner_that_stands_by_is_the_same_process_and_becomes_the_runner_again(tmp_path):
    socket, secret = tmp_path / "supernode", tmp_path / "secret"
    secret.write_bytes(b"secret")
    wake_file(socket).notify()
    command = (sys.executable, "-c", SILENT, str(tmp_path), str(socket), str(secret))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            assert process.stdout.readline().startswith("ready: ")
            # The notification from before needs no attention any more.
            assert not is_runner(process, 0.6)
            wake_file(socket).notify()
            assert is_runner(process)
        finally:
            process.kill()
