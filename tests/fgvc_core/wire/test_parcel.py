"""A parcel opens to the tensors that went in, or to an error; nothing in between."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.errors import PeerError
from fgvc_core.wire.arrays import PackedTensor, pack_all
from fgvc_core.wire.parcel import _encrypted, check_named_once, make_parcel, open_parcel

PACKED = pack_all({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)})

tensors = st.dictionaries(
    st.text(min_size=1, max_size=20),
    st.builds(
        PackedTensor,
        st.sampled_from(["float32", "uint8"]),
        st.lists(st.integers(0, 9), max_size=3).map(tuple),
        st.binary(max_size=50),
    ),
    max_size=5,
)


@given(tensors)
def test_what_goes_in_comes_out(packed):
    assert open_parcel(make_parcel(packed)) == packed


@given(st.binary(max_size=300))
def test_noise_never_opens_to_anything_but_an_error_or_tensors(data):
    try:
        found = open_parcel(data)
    except PeerError:
        return
    assert make_parcel(found)


@given(st.integers(0, len(make_parcel(PACKED)) - 1))
def test_a_parcel_that_is_cut_short_is_refused(length):
    with pytest.raises(PeerError):
        open_parcel(make_parcel(PACKED)[:length])


@pytest.mark.parametrize(
    "listed",
    [
        [["a", "float32", [2], 10**12]],
        [["a", "float32", [-1], 0]],
        [["a", "float32", [True], 0]],
        [["a", "float32", [0], 0], ["a", "float32", [0], 0]],
        [["a", "float32", [0]]],
        [[1, "float32", [0], 0]],
        {"a": 1},
        "a",
    ],
    ids=["too long", "negative", "a truth", "twice", "short", "no name", "no list", "text"],
)
def test_a_head_that_lists_what_cannot_be_is_refused(listed):
    head = json.dumps(listed).encode()
    with pytest.raises(PeerError, match="cannot be opened"):
        open_parcel(_encrypted([len(head).to_bytes(8, "little") + head]))


def test_a_head_that_is_nested_without_end_is_refused():
    head = b"[" * 100_000
    with pytest.raises(PeerError):
        open_parcel(_encrypted([len(head).to_bytes(8, "little") + head]))


@given(tensors)
def test_nobody_can_compute_what_a_parcel_will_be(packed):
    first, again = make_parcel(packed), make_parcel(packed)
    assert len(first) == len(again)
    assert first[:16] != again[:16]
    assert first[16:] != again[16:]


def test_the_pieces_of_a_parcel_are_never_alike():
    piece = 5 * 1024 * 1024
    parcel = make_parcel(pack_all({"w": np.zeros(4 * piece // 4, np.float32)}))
    pieces = {hash(parcel[at : at + piece]) for at in range(0, len(parcel), piece)}
    assert len(pieces) == 5


def test_an_array_joins_no_chunk_more_often_than_it_was_sent():
    check_named_once(b'{"arraychunk_ids": [0, 1]}', ["a", "b"])
    with pytest.raises(ValueError, match="more than once"):
        check_named_once(b'{"arraychunk_ids": [0, 0, 0]}', ["a", "b"])
