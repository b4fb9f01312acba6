"""What a site's supervisor reads in its SuperNode's lines."""

import inspect

import pytest
from flwr.supernode import start_client_internal

from fgvc_core.errors import PeerError
from fgvc_core.protocol.keys import new_key, public_text
from fieldmark.client.deployment.lines import (
    AWAITS,
    HALF_HANDED_OVER,
    KEY_REFUSED,
    LEFT_BEHIND,
    UNANSWERED,
)
from fieldmark.client.deployment.node_log import BREAK_S, REFUSED_S, NodeLog, Refused
from fieldmark.client.deployment.supervisor import site_services
from fieldmark.client.provision import make_home

IGNORED = "INFO :      Run ID 7 is not in `RUNNING` status. Ignoring message ab12."


@pytest.fixture
def node(tmp_path):
    """The SuperNode's service, what was said, and how often it was to be restarted."""
    coordinator = public_text(new_key().public_key())
    site = make_home(tmp_path / "home", name="lyon", coordinator=coordinator, cache=tmp_path)
    said, restarts = [], []
    node, runner = site_services(
        site, "127.0.0.1:1", tmp_path / "ca.pem", tmp_path, said.append,
        restart_node=lambda: restarts.append(1),
    )  # fmt: skip
    return node, runner, said, restarts


def test_a_node_that_a_dead_run_left_with_a_task_starts_anew(node):
    supernode, _, said, restarts = node
    supernode.on_line(IGNORED)
    assert restarts == [1]
    assert "restarts" in said[0]


def test_no_other_line_restarts_it(node):
    supernode, _, _, restarts = node
    for line in (
        "INFO :      SuperNode ID: 12",
        "INFO :      Received successfully",
        # Its answer came too late: that leaves nothing behind.
        "INFO :      Run ID 7 is not in `RUNNING` status. Ignoring reply message ab12.",
    ):
        supernode.on_line(line)
    assert restarts == []


def test_a_runner_that_dies_takes_its_nodes_task_with_it(node):
    _, runner, _, restarts = node
    runner.after_death(-9)
    assert restarts == [1]


def test_half_an_answer_has_the_node_start_anew_and_no_other_line_of_the_runners(node):
    _, runner, said, restarts = node
    runner.on_line(f"ended by ValueError: {HALF_HANDED_OVER}")
    assert restarts == []
    runner.on_line(HALF_HANDED_OVER)
    assert restarts == [1]
    assert "restarts" in said[0]


def test_a_run_that_waits_for_a_person_is_told_to_whoever_looks(node):
    _, runner, said, restarts = node
    runner.on_line(f"run 4f0c2a {AWAITS}: fieldmark site approve /home\x1b[2J/lyon\n")
    assert said == [f"run 4f0c2a {AWAITS}: fieldmark site approve /home\\x1b[2J/lyon"]
    assert restarts == []


def test_a_key_that_is_refused_is_said_once_and_ends_the_site_after_ten_minutes(tmp_path):
    coordinator = public_text(new_key().public_key())
    site = make_home(tmp_path / "home", name="lyon", coordinator=coordinator, cache=tmp_path)
    said, now = [], [0.0]
    refused = Refused(site, lambda: now[0])
    log = NodeLog(site, "fl:1", tmp_path / "ca", tmp_path / "note", said.append, print, refused)
    for _ in range(int(REFUSED_S / 60)):
        log.on_line(KEY_REFUSED)
        refused.check()
        now[0] += 60.0
    (line,) = said
    assert "its key is not registered (any more), or this machine's clock is off" in line
    assert f"fieldmark site check {site.home}" in line
    now[0] += 60.0
    log.on_line(KEY_REFUSED)
    with pytest.raises(PeerError, match="has refused the key of site 'lyon' for 10 minutes"):
        refused.check()


def test_a_single_refusal_long_ago_ends_no_site(tmp_path):
    coordinator = public_text(new_key().public_key())
    site = make_home(tmp_path / "home", name="lyon", coordinator=coordinator, cache=tmp_path)
    now = [0.0]
    refused = Refused(site, lambda: now[0])
    refused.check()
    for _ in range(30):
        refused.note()
        refused.check()
        now[0] += BREAK_S + 1.0
        refused.check()


def test_a_proxy_that_wants_a_password_is_named_once(node):
    supernode, _, said, restarts = node
    for _ in range(3):
        supernode.on_line("httpx.ProxyError: 407 Proxy Authentication Required")
    (line,) = said
    assert "name and a password" in line
    assert restarts == []


def test_a_site_that_cannot_sign_says_why_to_whoever_looks(node):
    _, runner, said, _ = node
    runner.on_line(f"{UNANSWERED}the disk of '/home/lyon' is full\n")
    assert said == [f"{UNANSWERED}the disk of '/home/lyon' is full"]


def test_flower_still_says_it_so():
    assert LEFT_BEHIND in inspect.getsource(start_client_internal)
