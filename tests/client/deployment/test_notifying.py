"""``[notify]``: a site's own command is told what waits, each thing once, and stops nothing."""

import json
import shlex
import sys
import time

import pytest

from fgvc_core.errors import ConfigurationError
from fieldmark.client.deployment.lines import AWAITS, REFUSED
from fieldmark.client.deployment.notifying import MOST_AN_HOUR, MOST_CHARACTERS, Notifier
from fieldmark.client.notify_settings import Notify

WAITS = f"run demo {AWAITS}: fieldmark site approve lyon"
TOLD = """
import json, os, sys
with open({path!r}, "a") as file:
    file.write(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]) + "\\n")
"""


@pytest.fixture
def told(tmp_path):
    """A program that writes down how it was called, and its calls so far."""
    path, program = tmp_path / "calls", tmp_path / "tell"
    program.write_text(f"#!{sys.executable}\n" + TOLD.format(path=str(path)))
    program.chmod(0o700)

    def calls():
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    return program, calls


def notifier(command, said=None, **changes):
    settings = Notify(command=tuple(map(str, command)), **changes)
    return Notifier("lyon", lambda: settings, (said if said is not None else []).append)


def tell(one, *events):
    for event, text in events:
        one.tell(event, text)
    for thread in one.threads:
        thread.join(30)
        assert not thread.is_alive()


def test_the_command_gets_event_site_and_sentence_once_and_a_clean_environment(told, monkeypatch):
    program, calls = told
    monkeypatch.setenv("HTTPS_PROXY", "http://name:password@proxy:3128")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("PATH", "/tmp/evil:/usr/bin")
    said = []
    one = notifier([program, "--to", "ward 3"], said)
    tell(one, ("approval", WAITS), ("approval", WAITS))
    ((words, environment, folder),) = calls()
    assert words == ["--to", "ward 3", "approval", "lyon", WAITS]
    assert not {"HTTPS_PROXY", "PYTHONPATH", "OMP_NUM_THREADS"} & set(environment)
    assert "evil" not in environment["PATH"]
    assert folder == "/"
    assert said == []


def test_words_from_outside_are_one_escaped_argument_and_no_shell_reads_them(told, tmp_path):
    program, calls = told
    mark = tmp_path / "mark"
    evil = (
        f"{REFUSED}$(touch {mark}) `touch {mark}`; touch {mark} \x1b[2J\n--help \u202e" + "x" * 999
    )
    tell(notifier([program], refusals=True), ("refusal", evil))
    ((words, _, _),) = calls()
    assert len(words) == 3
    assert words[2].startswith(f"{REFUSED}$(touch {shlex.quote(str(mark))})")
    assert "\\x1b[2J\\n--help \\u202e" in words[2]
    assert len(words[2]) == MOST_CHARACTERS
    assert words[2].isprintable()
    assert not mark.exists()


def test_refusals_are_told_of_only_where_asked_for_and_nobody_without_a_command(told):
    program, calls = told
    tell(notifier([program]), ("refusal", f"{REFUSED}the budget"))
    tell(notifier([]), ("approval", WAITS))
    assert calls() == []


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 3", "status 3"),
        ("echo 'no\x1b[31m way' >&2; exit 1", "status 1: no\\x1b[31m way"),
        ("sleep 600 & sleep 600", "did not end within 0.2 s"),
        (None, "No such file"),
    ],
)
def test_a_command_that_fails_or_hangs_is_logged_and_raises_nothing(tmp_path, script, why):
    program, said = tmp_path / "tell", []
    if script is not None:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o700)
    tell(notifier([program], said, seconds=0.2), ("approval", WAITS))
    (line,) = said
    assert line.startswith(f"notify: '{program}' failed: ")
    assert why in line


def test_what_a_killed_command_has_started_is_killed_with_it(tmp_path):
    program, pid = tmp_path / "tell", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\nsleep 600 & echo $! > {pid}\nwait\n")
    program.chmod(0o700)
    tell(notifier([program], seconds=0.5), ("approval", WAITS))
    child = int(pid.read_text())
    deadline = time.monotonic() + 10.0
    while _runs(child):
        assert time.monotonic() < deadline, "it outlived what had started it"
        time.sleep(0.01)


def _runs(process: int) -> bool:
    """Whether a process runs. A killed one that nobody has reaped yet is a zombie."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_flood_calls_it_twenty_times_an_hour(told):
    program, calls = told
    said, now = [], [0.0]
    settings = Notify(command=(str(program),))
    one = Notifier("lyon", lambda: settings, said.append, lambda: now[0])
    tell(one, *(("approval", f"run r{i} {AWAITS}: approve it") for i in range(MOST_AN_HOUR + 2)))
    assert len(calls()) == MOST_AN_HOUR
    assert len(said) == 2
    now[0] = 3601.0
    tell(one, ("approval", WAITS))
    assert len(calls()) == MOST_AN_HOUR + 1


def test_settings_that_cannot_be_read_just_now_stop_nothing():
    said = []

    def broken():
        raise ConfigurationError("site.toml is wrong.", remedy="")

    Notifier("lyon", broken, said.append).tell("approval", WAITS)
    assert said == ["nobody was notified: site.toml is wrong."]


@pytest.mark.parametrize("command", [("tell",), ("./tell",), ("/bin/a\0b",), ("/bin/sh",) * 65])
def test_a_command_is_an_absolute_path_and_few_words(command):
    with pytest.raises(ConfigurationError, match="notify"):
        Notify.read({"command": list(command)}, "notify")


def test_a_string_is_not_taken_for_a_shells_line():
    with pytest.raises(ConfigurationError):
        Notify.read({"command": "/usr/bin/mail -s x ward"}, "notify")
