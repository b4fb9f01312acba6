"""A notification is never missed, and a program becomes another one in its own process."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fgvc_core.wake import WakeFile


@pytest.fixture
def wake(tmp_path):
    return WakeFile(tmp_path / "messages")


def test_each_notification_counts_and_the_file_is_its_owners_alone(wake):
    assert wake.count() == 0
    for _ in range(3):
        wake.notify()
    assert wake.count() == 3
    assert wake.path.stat().st_mode & 0o777 == 0o600


def test_a_notification_between_the_look_and_the_wait_is_not_missed(wake):
    seen = wake.count()
    wake.notify()
    started = time.monotonic()
    assert wake.wait(seen, 30.0)
    assert time.monotonic() - started < 5.0


def test_a_wait_ends_at_a_notification_of_another_thread_or_with_its_time(wake):
    assert not wake.wait(0, 0.01)
    threading.Timer(0.1, wake.notify).start()
    assert wake.wait(0, 30.0)


PARENT = """
import os, sys, time
from fgvc_core.supervision import die_with_parent
from fgvc_core.wake import become
child = os.fork()
if child == 0:
    die_with_parent()
    become("fieldmark.server.deployment.standby", sys.argv[1])
print(child, flush=True)
time.sleep(60)
"""


def test_what_a_process_becomes_keeps_its_id_and_ends_with_its_parent(tmp_path):
    command = (sys.executable, "-c", PARENT, str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        try:
            # Not its words alone: the script before it names the module, too.
            until(lambda: b"-m\0fieldmark.server.deployment.standby" in line_of(child))
            parent.kill()
            until(lambda: not line_of(child))
        finally:
            if line_of(child):
                os.kill(child, signal.SIGKILL)


def line_of(pid):
    """Its command line; empty once it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def until(condition):
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
