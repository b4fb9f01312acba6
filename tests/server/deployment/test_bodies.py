"""Ten thousand spoilt bodies: each is refused in words of ours, or reads as it was sent."""

import asyncio
import time

import pytest
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from gateway_lab import dearest_push
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fieldmark.server.deployment.bodies import TooManyObjects, check_push, read_piece
from fieldmark.server.deployment.flower_internals import read_push
from fieldmark.server.deployment.gateway import OBJECT_BYTES, PUSH_BYTES, most_objects
from fieldmark.server.deployment.settings import GatewaySettings

MOST = 60
IDS = [f"{n:064x}" for n in range(MOST)]


@st.composite
def trees(draw, depth=5):
    """A tree that is within bounds, each id once."""
    ids = iter(IDS)

    def grown(level):
        count = draw(st.integers(0, 3)) if level < depth else 0
        found = ObjectTree(object_id=next(ids))
        for _ in range(count):
            try:
                found.children.append(grown(level + 1))
            except StopIteration:
                break
        return found

    return grown(1)


def push_of(tree):
    metadata = Metadata(src_node_id=7, message_id=tree.object_id, reply_to_message_id="ab" * 32)
    return PushMessagesRequest(
        node=Node(node_id=7),
        messages_list=[Message(metadata=metadata)],
        message_object_trees=[tree],
        clientapp_runtime_list=[1.5],
    ).SerializeToString()


def ids_of(tree):
    return {tree.object_id}.union(*(ids_of(child) for child in tree.children))


@given(trees())
def test_a_message_as_flower_writes_it_reads_as_it_was_sent(tree):
    pushed = read_push(push_of(tree), MOST)
    assert (pushed.node, pushed.claimed, pushed.answers) == (7, 7, "ab" * 32)
    assert pushed.objects == ids_of(tree)


def spoilt(body):
    """Some bytes of it changed, cut out, doubled, or put in."""
    cut = st.tuples(st.integers(0, len(body)), st.integers(0, 20), st.binary(max_size=20))
    return st.lists(cut, min_size=1, max_size=4).map(lambda cuts: _apply(body, cuts))


def _apply(body, cuts):
    for at, length, put in cuts:
        body = body[:at] + put + body[at + length :]
    return body


def read(body):
    try:
        return read_push(body, MOST)
    except ValueError:
        return None


def piece_of(body, split):
    """(object id, all that would be passed on) of a piece that comes in parts; None if refused."""

    async def stream():
        for at in range(0, len(body), split):
            yield body[at : at + split]

    async def whole():
        piece = await read_piece(stream(), len(body))
        return piece.object_id, b"".join([part async for part in piece.body])

    try:
        return asyncio.run(whole())
    except ValueError:
        return None


PIECE = PushObjectRequest(
    node=Node(node_id=7), run_id=2**63, object_id=IDS[3], object_content=b"c" * 300, session_id="s"
).SerializeToString()


@given(st.integers(1, 400))
def test_a_piece_as_flower_writes_it_passes_in_whatever_parts_it_comes(split):
    assert piece_of(PIECE, split) == (IDS[3], PIECE)


@given(spoilt(PIECE), st.integers(1, 400))
def test_what_passes_as_a_piece_is_what_the_superlink_reads(body, split):
    found = piece_of(body, split)
    if found is not None:
        assert found[1] == body
        assert PushObjectRequest.FromString(body).object_id == found[0]


@pytest.mark.slow
def test_ten_thousand_spoilt_messages_are_refused_or_within_bounds():
    tree = ObjectTree(object_id=IDS[0])
    for number in range(1, 6):
        tree.children.add(object_id=IDS[number]).children.add(object_id=IDS[number + 6])
    seen = []

    @settings(
        max_examples=10_000,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(spoilt(push_of(tree)))
    def fuzz(body):
        pushed = read(body)
        seen.append(pushed is None)
        if pushed is not None:
            assert len(pushed.objects) <= MOST
            assert all(len(i) == 64 for i in pushed.objects)

    fuzz()
    assert seen.count(True) > 1000


def test_the_dearest_body_within_the_limits_takes_milliseconds():
    most = most_objects(GatewaySettings())
    body, took = dearest_push(most), []
    assert 0 <= PUSH_BYTES + OBJECT_BYTES * most - len(body) < 10
    for _ in range(20):
        started = time.thread_time()
        assert len(read_push(body, most).objects) == most
        took.append(time.thread_time() - started)
    # The least of them: what else the machine does is not the body's.
    print(f"\na push of {most} objects and {len(body)} bytes is read in {min(took) * 1000:.1f} ms")
    assert min(took) < 0.02


@pytest.mark.parametrize("count", [MOST, MOST + 1, 5000])
def test_a_tree_is_counted_before_anything_is_parsed(count):
    tree = ObjectTree(object_id=IDS[0], children=[ObjectTree()] * (count - 1))
    body = push_of(tree)
    if count <= MOST:
        check_push(body, MOST)
    else:
        with pytest.raises(TooManyObjects):
            check_push(body, MOST)
