"""Runs that wait are read, and decisions recorded, by child processes of the page's."""

import pytest

from fgvc_core.errors import RunFailed
from fieldmark.client.announced import remember
from fieldmark.client.deployment import deciding
from fieldmark.client.privacy.approval import waiting_in_words

from ..protected_sites import ledger_of, make_site, request, unprotected

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
    for _ in range(3):
        assert waiting(site) == []
    assert len(asked) == 1
    ledger_of(site).note("refused", {"run": "", "round": 0, "what": "x", "reason": "y"})
    waiting(site)
    assert len(asked) == 2


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
