"""The node notifies the runner of each message, and sleeps no longer than it has to."""

import inspect

import pytest
from flwr.supernode import start_client_internal

from fgvc_core.wake import WakeFile
from fieldmark.client.deployment.flower_internals import LOOK_S, pace_node


class Clock:
    def __init__(self):
        self.now, self.slept = 100.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(round(seconds, 3))


@pytest.fixture
def clock(monkeypatch):
    """Also puts back what is replaced in Flower's module."""
    for name in ("time", "_pull_and_store_message"):
        monkeypatch.setattr(start_client_internal, name, getattr(start_client_internal, name))
    return Clock()


def test_flowers_loop_sleeps_where_we_shorten_it():
    text = inspect.getsource(start_client_internal)
    assert text.count("time.sleep(3)") == 1
    assert text.count("time.sleep(0.5)") == 2
    assert text.count("time.sleep") == 3


def test_the_runner_is_told_of_a_message_that_came_and_of_nothing_else(
    tmp_path, monkeypatch, clock
):
    wake, come = WakeFile(tmp_path / "messages"), iter([None, 7, None])
    monkeypatch.setattr(start_client_internal, "_pull_and_store_message", lambda **_: next(come))
    pace_node(wake, clock)
    counts = []
    for _ in range(3):
        start_client_internal._pull_and_store_message(state=None)
        counts.append(wake.count())
    assert counts == [0, 1, 1]


@pytest.mark.parametrize(
    ("call_s", "slept"), [(0.0, 3.0), (1.0, 2.0), (20.0, 0.0)], ids=["at once", "soon", "held"]
)
def test_a_call_that_was_held_needs_no_sleep_and_one_that_was_not_still_has_it(
    tmp_path, monkeypatch, clock, call_s, slept
):
    def pull():
        clock.now += call_s

    monkeypatch.setattr(start_client_internal, "_pull_and_store_message", pull)
    pace_node(WakeFile(tmp_path / "messages"), clock)
    start_client_internal._pull_and_store_message()
    start_client_internal.time.sleep(3)
    assert clock.slept == [slept]


def test_an_answer_of_this_machine_is_looked_for_more_often(tmp_path, clock):
    pace_node(WakeFile(tmp_path / "messages"), clock)
    start_client_internal.time.sleep(0.5)
    assert clock.slept == [LOOK_S]
