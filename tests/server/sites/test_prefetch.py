"""The next reply is fetched and hashed while a large one is read; nothing else about it changes."""

import threading
from contextlib import closing

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict

from fgvc_core.flower.internals import enter_run
from fgvc_core.flower.records import digests_of, is_large, to_array_record
from fgvc_core.wire.arrays import WORTH_THREADS, available, core_taken, digest_all, pack_all, spare
from fieldmark.server.sites.prefetch import LookAhead


def reply(value=0.0, size=3, request=None):
    enter_run(1)
    arrays = to_array_record(pack_all({"w": np.full(size, value, np.float32)}))
    request = request or Message(RecordDict(), 2, "train")
    return Message(RecordDict({"tensors": arrays}), reply_to=request)


def digest(value, size=3):
    return digest_all(pack_all({"w": np.full(size, value, np.float32)}))


def test_what_a_look_found_is_handed_out_once():
    asked, there = [], reply(2)

    def pull(ids):
        asked.append((*ids, threading.current_thread() is threading.main_thread()))
        return [there]

    with closing(LookAhead(pull)) as ahead:
        assert ahead.found("a") == []
        ahead.look("b")
        assert [f.message for f in ahead.found("b")] == [there]
        assert ahead.found("b") == []
    assert asked == [("b", False)]


def test_each_message_comes_with_the_digests_of_its_own_tensors():
    with closing(LookAhead(lambda ids: [reply(1), reply(2)])) as ahead:
        ahead.look("a")
        assert [f.digests for f in ahead.found("a")] == [digest(1), digest(2)]


def test_a_look_goes_on_while_the_reply_before_it_is_read_and_has_a_core_of_its_own():
    begun, read = threading.Event(), threading.Event()

    def pull(ids):
        begun.set()
        assert read.wait(10)
        return [reply(1)]

    with closing(LookAhead(pull)) as ahead:
        ahead.look("next")
        assert begun.wait(10)
        assert spare() == max(available() - 1, 1)
        read.set()
        assert len(ahead.found("next")) == 1
    assert spare() == available()


def test_what_goes_wrong_in_a_look_is_raised_where_its_reply_is_asked_for():
    def pull(ids):
        raise ConnectionError("gone")

    with closing(LookAhead(pull)) as ahead:
        ahead.look("a")
        with pytest.raises(ConnectionError, match="gone"):
            ahead.found("a")
    assert spare() == available()


def test_no_look_is_left_behind():
    with closing(LookAhead(lambda ids: [])) as ahead:
        ahead.look("a")
    assert not [t for t in threading.enumerate() if t.name.startswith("look-ahead")]


def test_one_core_is_always_left():
    with core_taken(), core_taken(), core_taken():
        assert spare() >= 1


@pytest.mark.parametrize(("size", "large"), [(100, False), (WORTH_THREADS // 4, True)])
def test_only_a_large_reply_is_worth_a_look(size, large):
    assert is_large(reply(size=size)) is large


def test_a_strangers_message_is_hashed_only_if_its_tensors_can_travel():
    enter_run(1)
    request = Message(RecordDict(), 2, "train")
    assert digests_of(reply(3)) == digest(3)
    for strange in (Array("object", (1,), "numpy.ndarray", b"x"),
                    Array("float32", (1,) * 40, "numpy.ndarray", b"x")):  # fmt: skip
        record = RecordDict({"tensors": ArrayRecord({"w": strange})})
        assert digests_of(Message(record, reply_to=request)) is None
    for nothing in (RecordDict(), RecordDict({"tensors": ArrayRecord()})):
        assert digests_of(Message(nothing, reply_to=request)) == {}
        assert not is_large(Message(nothing, reply_to=request))
    assert digests_of(Message(Error(1), reply_to=request)) == {}
    assert not is_large(Message(Error(1), reply_to=request))
