"""What a site's supervisor reads in its SuperNode's lines."""

import inspect

import pytest
from flwr.supernode import start_client_internal

from fgvc_core.protocol.keys import new_key, public_text
from fieldmark.client.deployment.lines import AWAITS, HALF_HANDED_OVER, LEFT_BEHIND
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


def test_flower_still_says_it_so():
    assert LEFT_BEHIND in inspect.getsource(start_client_internal)
