"""A call for messages is held until a run has sent some, and by nothing else for long."""

import asyncio
import time

import pytest

from fieldmark.server.deployment.held import Held, sent_file


class Caller:
    """A request whose connection closes after some seconds."""

    def __init__(self, stays_s=60.0):
        self.stays_s = stays_s

    async def receive(self):
        await asyncio.sleep(self.stays_s)
        return {"type": "http.disconnect"}


@pytest.fixture
def wake(tmp_path):
    found = sent_file(tmp_path)
    found.path.parent.mkdir(parents=True)
    return found


def outcome(wake, meanwhile=lambda held: None, *, caller=None, within_s=30.0, seen=0):
    """Whether the SuperLink is asked again, and after how many seconds."""

    async def wait():
        held = Held(wake, lambda: True)
        asyncio.get_running_loop().call_later(0.2, meanwhile, held)
        started = time.monotonic()
        again = await held.wait(caller or Caller(), "lyon", seen, within_s)
        return again, time.monotonic() - started

    return asyncio.run(wait())


def test_a_message_that_was_sent_ends_the_wait(wake):
    again, seconds = outcome(wake, lambda held: wake.notify())
    assert again
    assert 0.1 < seconds < 5.0


def test_a_message_that_was_sent_while_the_superlink_answered_is_not_missed(wake):
    wake.notify()
    assert outcome(wake, seen=0)[0]


def test_without_a_message_the_wait_ends_with_its_time(wake):
    again, seconds = outcome(wake, within_s=0.3)
    assert not again
    assert 0.2 < seconds < 5.0


def test_nobody_asks_again_for_a_caller_that_has_gone(wake):
    # The message would be handed to a connection that is closed, and lost.
    again, seconds = outcome(wake, caller=Caller(0.2))
    assert not again
    assert seconds < 5.0


def test_nobody_asks_again_for_a_call_whose_site_has_made_another_one(wake):
    again, seconds = outcome(wake, lambda held: held.supersede("lyon"))
    assert not again
    assert seconds < 5.0


def test_another_sites_call_changes_nothing(wake):
    again, seconds = outcome(wake, lambda held: held.supersede("turku"), within_s=0.5)
    assert not again
    assert seconds > 0.4


def test_a_gateway_that_ends_lets_go(wake):
    again, seconds = outcome(wake, lambda held: setattr(held, "is_closing", lambda: True))
    assert not again
    assert seconds < 5.0
