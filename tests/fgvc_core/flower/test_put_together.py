"""A coordinator's message from its pieces, at the site: whatever they are made of."""

import json
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.flower.internals import enter_run, put_together


def pieces(content):
    enter_run(7)
    message = Message(content, dst_node_id=2, message_type="train")
    objects = get_all_nested_objects(message)
    return message.object_id, {i: found.deflate() for i, found in objects.items()}


def parcel(data):
    return Array("uint8", (len(data),), "fieldmark.parcel", data)


def content(data=b"weights"):
    return RecordDict({"tensors": ArrayRecord({"parcel": parcel(data)}),
                       "envelope": ConfigRecord({"body": "{}", "signature": b"s"})})  # fmt: skip


def test_a_message_is_what_was_sent_and_knows_its_id():
    root, contents = pieces(content(b"weights"))
    message = put_together(root, contents)
    assert message.content["tensors"]["parcel"].data == b"weights"
    assert message.metadata.message_id == root
    assert contents == {}


def again(contents, times):
    """The same pieces, but the array is made of its chunk so many times."""
    for object_id, data in contents.items():
        if data.startswith(b"Array "):
            head, body = data.split(b"\0", 1)
            listed = json.loads(body)
            listed["arraychunk_ids"] = listed["arraychunk_ids"] * times
            body = json.dumps(listed).encode()
            kind, children, _ = head.decode().split(" ")
            contents[object_id] = f"{kind} {children} {len(body)}".encode() + b"\0" + body
            return contents
    raise AssertionError("there is no array")


def test_a_chunk_that_is_named_a_thousand_times_is_never_joined():
    root, contents = pieces(content(np.ones(250_000, np.float32).tobytes()))
    spoiled = again(contents, 1000)
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than once"):
        put_together(root, spoiled)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_an_object_that_is_no_message_is_none():
    _, contents = pieces(content())
    record = next(i for i, data in contents.items() if data.startswith(b"RecordDict "))
    with pytest.raises(ValueError, match="is a RecordDict"):
        put_together(record, contents)
    with pytest.raises(ValueError, match="KeyError"):
        put_together("f" * 64, pieces(content())[1])


ROOT, WHOLE = pieces(content())
"""Made once: each message has a time in it, and a generator must draw from the same pieces."""


@given(data=st.data())
def test_pieces_that_a_stranger_changed_make_a_message_or_none(data):
    contents = dict(WHOLE)
    spoiled = data.draw(st.sampled_from(sorted(contents)))
    at = data.draw(st.integers(0, len(contents[spoiled])))
    put_in = data.draw(st.binary(max_size=20))
    gone = data.draw(st.integers(0, 40))
    contents[spoiled] = contents[spoiled][:at] + put_in + contents[spoiled][at + gone :]
    try:
        message = put_together(ROOT, contents)
    except ValueError:
        return
    assert isinstance(message, Message)
