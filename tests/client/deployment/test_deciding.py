"""Runs that wait are read, and decisions recorded, by child processes of the page's."""

import threading
from dataclasses import replace

import pytest

from fgvc_core.errors import RunFailed
from fieldmark.client.announced import remember
from fieldmark.client.deployment import deciding
from fieldmark.client.privacy.approval import waiting_in_words

from ..protected_sites import ledger_of, make_site, request, unprotected, with_policy

OPEN = unprotected()


@pytest.fixture
def site(tmp_path):
    made = make_site(tmp_path, approval="each-run", privacy="optional")
    values = {"recipe": OPEN.to_toml(), "class_names": ("jay", "wren"), "site": ""}
    remember(made.home, request(OPEN, "roll_call", "run-7", 0, **values), lambda run: False)
    return made


def test_a_child_says_what_this_process_would_and_records_what_the_command_would(site):
    assert deciding.WaitingRuns(patience_s=120.0)(site) == waiting_in_words(site)
    deciding.decide(site.home, "approve", "run-7", OPEN.digest)
    assert ledger_of(site).is_approved("run-7", OPEN.digest)


def test_what_is_known_is_not_read_again_until_something_has_changed(site, monkeypatch):
    asked = []
    monkeypatch.setattr(deciding, "_output", lambda command: asked.append(command) or "[]")
    waiting = deciding.WaitingRuns(patience_s=60.0)
    for number in range(3):
        assert waiting(site) == []
        # A coordinator asks again and again, and each answer is a line of the ledger.
        ledger_of(site).note("refused", {"run": "", "round": number, "what": "x", "reason": "y"})
    assert len(asked) == 1
    site = with_policy(site, approval="each-run", privacy="required")
    waiting(site)
    assert len(asked) == 2


def test_while_costs_are_read_anew_the_last_ones_are_shown(site, monkeypatch):
    told, go_on = [], threading.Event()

    def output(command):
        if told:
            go_on.wait(60)
        told.append(command)
        return f'["answer {len(told)}"]'

    monkeypatch.setattr(deciding, "_output", output)
    waiting = deciding.WaitingRuns(patience_s=60.0)
    assert waiting(site) == ["answer 1"]
    waiting._patience_s = 0.0
    state = deciding._State.of(site)
    for changes, shown in (({"charges": "more"}, ["answer 1"]), ({"settings": "other"}, [])):
        monkeypatch.setattr(deciding._State, "of", lambda site, c=changes: replace(state, **c))
        assert waiting(site) == shown
    go_on.set()


def test_what_a_command_says_against_it_is_told_and_asked_again(site, monkeypatch):
    command = ("python3", "-c", "import sys; sys.exit('the ledger is full')")
    monkeypatch.setattr(deciding, "_PYTHON", command)
    waiting = deciding.WaitingRuns(patience_s=60.0)
    for _ in range(2):
        with pytest.raises(RunFailed, match="the ledger is full"):
            waiting(site)
    with pytest.raises(RunFailed, match="the ledger is full"):
        deciding.decide(site.home, "approve", "run-7", OPEN.digest)
    assert not ledger_of(site).is_approved("run-7", OPEN.digest)
