"""The next reply is fetched while a large one is read; nothing else about it changes."""

import threading

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict

from fgvc_core.wire.arrays import pack_all
from fgvc_core.wire.cores import WORTH_THREADS
from server.ahead import LookAhead
from server.records import is_large, to_array_record
from simulations.flower_internals import enter_run


def test_what_a_look_found_is_handed_out_once_and_asked_for_only_once():
    asked = []

    def pull(ids):
        asked.append((ids[0], threading.current_thread() is threading.main_thread()))
        return [f"reply to {ids[0]}"]

    with LookAhead(pull) as ahead:
        assert ahead.pull("a") == ["reply to a"]
        ahead.look("b")
        assert ahead.pull("b") == ["reply to b"]
        assert ahead.pull("b") == ["reply to b"]
    assert asked == [("a", True), ("b", False), ("b", True)]


def test_a_look_that_found_nothing_is_followed_by_an_ordinary_call():
    there = iter([[], ["late"]])
    with LookAhead(lambda ids: next(there)) as ahead:
        ahead.look("a")
        assert ahead.pull("a") == ["late"]


def test_a_look_goes_on_while_the_reply_before_it_is_read():
    begun, read = threading.Event(), threading.Event()

    def pull(ids):
        begun.set()
        return [read.wait(10)]

    with LookAhead(pull) as ahead:
        ahead.look("next")
        assert begun.wait(10)
        read.set()
        assert ahead.pull("next") == [True]


def test_what_goes_wrong_in_a_look_is_raised_where_its_reply_is_asked_for():
    def pull(ids):
        raise ConnectionError("gone")

    with LookAhead(pull) as ahead:
        ahead.look("a")
        with pytest.raises(ConnectionError, match="gone"):
            ahead.pull("a")


def test_no_look_is_left_behind():
    with LookAhead(lambda ids: []) as ahead:
        ahead.look("a")
    assert not [t for t in threading.enumerate() if t.name.startswith("look-ahead")]


@pytest.mark.parametrize(("nbytes", "large"), [(400, False), (WORTH_THREADS, True)])
def test_only_a_large_reply_is_worth_a_look(nbytes, large):
    enter_run(1)
    request = Message(RecordDict(), 2, "train")
    arrays = to_array_record(pack_all({"w": np.zeros(nbytes // 4, np.float32)}))
    assert is_large(Message(RecordDict({"tensors": arrays}), reply_to=request)) is large
    assert not is_large(Message(RecordDict(), reply_to=request))
    assert not is_large(Message(Error(1), reply_to=request))
