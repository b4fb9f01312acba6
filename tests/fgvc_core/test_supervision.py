"""Processes are kept up, held alone, and never left behind."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fgvc_core import supervision
from fgvc_core.errors import ConfigurationError
from fgvc_core.files import read_json, replace_private_json
from fgvc_core.supervision import (
    Service,
    Supervisor,
    alone,
    holder,
    last_words,
    refuse_second,
    start_up,
    stop_holder,
)

SLEEPER = (sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)")


@pytest.fixture
def supervisor(tmp_path):
    made = Supervisor(tmp_path)
    yield made
    made.stop()


def step_until(supervisor, condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        supervisor.step()
        time.sleep(0.02)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as file:
        return file.read().split()[2] == "Z"


def test_what_dies_is_started_again_and_told_of(supervisor, tmp_path):
    deaths, lines = [], []
    supervisor.add(Service("a", SLEEPER, after_death=deaths.append, on_line=lines.append))
    first = supervisor.pid("a")
    step_until(supervisor, lambda: lines)
    os.kill(first, signal.SIGKILL)
    step_until(supervisor, lambda: supervisor.pid("a") not in (None, first))
    assert deaths == [-9]
    noted = read_json(tmp_path / "state" / "services.json")["a"]
    assert noted["restarts"] == 1
    assert abs(time.time() - noted["since"]) < 60
    assert "here" in (tmp_path / "logs" / "a.log").read_text()


def test_what_fails_again_and_again_is_tried_ever_more_seldom(supervisor):
    started = []
    fails = (sys.executable, "-c", "raise SystemExit(3)")
    service = Service("a", fails, waits=(0.0, 0.0, 60.0), after_death=started.append)
    supervisor.add(service)
    step_until(supervisor, lambda: len(started) == 3)
    for _ in range(20):
        supervisor.step()
        time.sleep(0.02)
    assert started == [3, 3, 3]


def test_what_is_to_start_anew_ends_and_starts_at_the_next_step(supervisor):
    deaths = []
    supervisor.add(Service("a", SLEEPER, after_death=deaths.append))
    first = supervisor.pid("a")
    asking = threading.Thread(target=supervisor.ask_restart, args=("a",))
    asking.start()
    asking.join()
    assert supervisor.pid("a") == first
    supervisor.step()
    assert gone(first)
    assert supervisor.pid("a") not in (None, first)
    second = supervisor.pid("a")
    supervisor.step()
    assert supervisor.pid("a") == second
    # It was told to: nobody has to be told of a death.
    assert deaths == []


def test_stopping_leaves_nobody(tmp_path):
    supervisor = Supervisor(tmp_path)
    supervisor.add(Service("a", SLEEPER))
    supervisor.add(Service("b", SLEEPER))
    pids = [supervisor.pid("a"), supervisor.pid("b")]
    supervisor.stop()
    assert all(gone(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="a death signal is Linux's")
def test_children_die_with_a_supervisor_that_is_killed(tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from fgvc_core.supervision import Service, Supervisor\n"
        f"s = Supervisor(Path({str(tmp_path)!r}))\n"
        "s.add(Service('a', (sys.executable, '-c', 'import time; time.sleep(600)')))\n"
        "print(s.pid('a'), flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while not gone(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(child)


def test_a_folder_is_held_by_one(tmp_path):
    assert holder(tmp_path) is None
    with alone(tmp_path, "The site"):
        held = subprocess.run(
            [sys.executable, "-c", "import sys\nfrom pathlib import Path\n"
             "from fgvc_core.supervision import alone, holder\n"
             "print(holder(Path(sys.argv[1])))\n"
             "with alone(Path(sys.argv[1]), 'The site'):\n    pass\n", str(tmp_path)],
            capture_output=True, text=True,
        )  # fmt: skip
    assert held.stdout.strip() == str(os.getpid())
    assert ConfigurationError.__name__ in held.stderr
    assert holder(tmp_path) is None
    assert not stop_holder(tmp_path)


def test_a_json_file_is_the_old_one_or_the_new_one(tmp_path):
    replace_private_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.json").write_text('{"a": ')
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path / "none.json") is None


def test_a_second_one_is_refused_before_anything_of_the_first_is_touched(tmp_path):
    refuse_second(tmp_path, "site")
    with alone(tmp_path, "The site"), pytest.raises(ConfigurationError) as caught:
        refuse_second(tmp_path, "site")
    assert f"process {os.getpid()}" in caught.value.what
    assert "fieldmark site stop" in caught.value.remedy


def test_the_last_words_are_those_since_the_start(tmp_path):
    log = tmp_path / "up.log"
    log.write_text("Error: an old one\n")
    since = log.stat().st_size
    assert last_words(log, since) == ""
    log.write_text("Error: an old one\nready\n\nError: port 8443\nis taken.\n")
    assert last_words(log, since) == "Error: port 8443 is taken."


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Starts a script in place of ``fieldmark site up``; returns the words and what was said."""
    start, ready, said = supervision.start_detached, tmp_path / "state" / "ready.json", []

    def run(script, within_s=60.0):
        monkeypatch.setattr(supervision, "UP_WITHIN_S", within_s)
        monkeypatch.setattr(supervision, "TELL_AFTER_S", 0.05)
        monkeypatch.setattr(
            supervision,
            "start_detached",
            lambda command, log: (
                run.processes.append(start((sys.executable, "-c", script, *command[-3:]), log))
                or run.processes[-1]
            ),
        )
        ready.parent.mkdir(exist_ok=True)
        # Of an earlier start: it says nothing about this one.
        ready.write_text("{}")
        return start_up("site", "The site", tmp_path, ready, said.append, "not yet"), said

    run.processes = []
    return run


def test_what_writes_its_file_is_up(started, tmp_path):
    words, said = started(
        "import pathlib, sys, time; time.sleep(1)\n"
        "assert sys.argv[1:3] == ['site', 'up']\n"
        "pathlib.Path(sys.argv[3], 'state', 'ready.json').write_text('{}')\n"
        "time.sleep(5)"
    )
    assert words is None
    assert said[0].startswith("not yet, waiting ")
    assert said[-1].startswith("up, as process ")


def test_what_ends_at_once_is_told_by_its_last_words(started):
    assert started("print('the disk is full'); raise SystemExit(1)")[0] == "the disk is full"
    with pytest.raises(ConfigurationError, match="The site did not come up: no such home"):
        started("print('no such home'); raise SystemExit(2)")


def test_what_does_not_come_up_in_time_is_ended(started):
    words, _ = started("import time; time.sleep(600)", within_s=0.5)
    assert words == ""
    assert started.processes[-1].wait(20) == -signal.SIGTERM
