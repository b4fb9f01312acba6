"""What a stranger gets from the only open port (nothing), and what a site does."""

import asyncio
import base64
import contextlib
import datetime
import json
import threading
import time

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node

from fgvc_core.protocol.keys import new_key, public_text
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.flower_internals import Pushed
from fieldmark.server.deployment.gateway import NOT_TAKEN, Gateway
from fieldmark.server.deployment.held import sent_file
from fieldmark.server.deployment.provisioning import init_server
from fieldmark.server.deployment.settings import DeploymentSettings, GatewaySettings

SITE, STRANGER = new_key(), new_key()
QUESTION = "ab" * 32
TYPE = {"content-type": "application/protobuf"}


def headers(key, signer=None, at=None):
    stamp = (at or datetime.datetime.now(datetime.UTC)).isoformat()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = (signer or key).sign(stamp.encode(), ec.ECDSA(SHA256()))
    return {
        "flwr-public-key": base64.b64encode(public).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": base64.b64encode(signature).decode(),
    }


class Rig:
    """A gateway before an upstream that writes down what reaches it."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.reached = []

        async def answer(request):
            self.reached.append((request.url.path, await request.aread(), dict(request.headers)))

            async def pieces():
                yield b"from the "
                yield b"SuperLink"

            return httpx.Response(200, content=pieces())

        upstream = httpx.AsyncClient(
            base_url="https://superlink", transport=httpx.MockTransport(answer)
        )
        self.gateway = Gateway(folder, upstream, GatewaySettings(**settings))
        self.gateway.mail.hand("lyon", QUESTION, ["cd" * 32])

    def __call__(self, method, path, content=b"", **more):
        async def ask():
            transport = httpx.ASGITransport(self.gateway.app())
            async with httpx.AsyncClient(transport=transport, base_url="https://gate") as client:
                return await client.request(method, path, content=content, **more)

        return asyncio.run(ask())

    def opened(self, *wanted):
        """As if an answer had been announced, and the SuperLink had asked for these objects."""
        pushed = Pushed(7, 7, QUESTION, frozenset(wanted))
        self.gateway.mail.opened("lyon", pushed, wanted)

    def answering(self, said):
        """Every answer of the SuperLink from now on."""

        async def pieces():
            yield said

        self.gateway._upstream = httpx.AsyncClient(
            base_url="https://superlink",
            transport=httpx.MockTransport(lambda request: httpx.Response(200, content=pieces())),
        )

    def refusals(self):
        path = self.folder / "logs" / "gateway.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def rig(tmp_path):
    init_server(tmp_path / "fed", DeploymentSettings(hosts=("gate",)))
    AllowList(tmp_path / "fed").add("lyon", public_text(SITE.public_key()))
    return Rig(tmp_path / "fed")


def push(node, claims, pieces=3, tree=None, answers=QUESTION):
    ids = [f"{n:064x}" for n in range(pieces)]
    tree = tree or ObjectTree(object_id=ids[0], children=[ObjectTree(object_id=i) for i in ids[1:]])
    return PushMessagesRequest(
        node=Node(node_id=node),
        messages_list=[
            Message(
                metadata=Metadata(
                    src_node_id=claim, message_id=tree.object_id, reply_to_message_id=answers
                )
            )
            for claim in claims
        ],
        message_object_trees=[tree],
    ).SerializeToString()


def piece(nbytes=10, object_id=f"{0:064x}"):
    return PushObjectRequest(
        node=Node(node_id=7),
        run_id=1,
        object_id=object_id,
        object_content=bytes(nbytes),
        session_id="s",
    ).SerializeToString()


OPEN_IN_FLOWER = [
    ("POST", "/v1/control/start-run"),
    ("POST", "/v1/control/list-nodes"),
    ("POST", "/v1/control/list-runs"),
    ("POST", "/v1/control/register-node"),
    ("POST", "/v1/runtime/acquire-task"),
    ("POST", "/v1/runtime/push-messages"),
    ("POST", "/v1/fleet/register-node"),
    ("POST", "/v1/fleet/unregister-node"),
    ("POST", "/v1/fleet/../control/list-nodes"),
    ("POST", "/v1/fleet/%2e%2e/control/list-nodes"),
    ("POST", "//v1/fleet/pull-messages"),
    ("GET", "/v1/fleet/pull-messages"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/health"),
    ("GET", "/"),
]


@pytest.mark.parametrize("key", [None, STRANGER, SITE], ids=["no key", "a stranger", "a site"])
@pytest.mark.parametrize(("method", "path"), OPEN_IN_FLOWER)
def test_what_flower_leaves_open_is_closed_to_everybody(rig, method, path, key):
    answer = rig(method, path, headers={**TYPE, **(headers(key) if key else {})})
    assert answer.status_code == 404
    assert rig.reached == []


TEN_MINUTES = datetime.timedelta(minutes=10)


@pytest.mark.parametrize(
    "given",
    [
        {},
        headers(STRANGER),
        headers(SITE, signer=STRANGER),
        {**headers(SITE), "flwr-signature": "AAAA"},
        {**headers(SITE), "flwr-signature": "!"},
        {**headers(SITE), "flwr-timestamp": "now"},
        {**headers(SITE), "flwr-public-key": "A" * 5000},
        {**headers(SITE), "flwr-public-key": base64.b64encode(b"no key").decode()},
        # Made in the test: minutes may pass between collecting it and running it.
        lambda: headers(SITE, at=datetime.datetime.now(datetime.UTC) - TEN_MINUTES),
        lambda: headers(SITE, at=datetime.datetime.now(datetime.UTC) + TEN_MINUTES),
        lambda: headers(SITE, at=datetime.datetime.now()),
    ],
    ids=["no key", "not registered", "forged", "short", "no base64", "no time", "long", "no key 2",
         "late", "early", "no zone"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/fleet/pull-messages"), ("GET", "/v1/announcement")]
)
def test_who_proves_no_registered_key_gets_nothing_and_is_written_down(rig, given, method, path):
    given = given() if callable(given) else given
    answer = rig(method, path, b"x", headers={**TYPE, **given})
    assert answer.status_code == 401
    assert answer.json() == {"detail": "Not a registered site"}
    assert rig.reached == []
    (refusal,) = rig.refusals()
    assert (refusal["status"], refusal["path"]) == (401, path)


def test_no_sender_can_make_ever_new_kinds_of_refusals(rig):
    for minutes in (6, 7, -8, 9):
        at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
        given = {**TYPE, **headers(SITE, at=at)}
        assert rig("POST", "/v1/fleet/pull-messages", b"", headers=given).status_code == 401
    assert rig.gateway.meter.refusals == {("a clock that is off", 401): 4}
    assert len({r["refused"] for r in rig.refusals()}) == 4


def test_a_public_key_written_in_many_ways_does_not_fill_our_memory(rig, monkeypatch):
    monkeypatch.setattr("fieldmark.server.deployment.gateway.KEYS_KEPT", 3)
    given = {**TYPE, **headers(SITE, signer=STRANGER)}
    pem = base64.b64decode(given["flwr-public-key"])
    for lines in range(8):
        given["flwr-public-key"] = base64.b64encode(pem + b"\n" * lines).decode()
        assert rig("POST", "/v1/fleet/pull-messages", b"", headers=given).status_code == 401
        assert len(rig.gateway._keys) <= 3
    assert rig("POST", "/v1/fleet/pull-messages", b"", headers={**TYPE, **headers(SITE)}).is_success


def test_a_sites_call_is_forwarded_with_its_proof_and_its_body(rig):
    given = headers(SITE)
    rig.opened(f"{0:064x}")
    answer = rig("POST", "/v1/fleet/push-object", piece(), headers={**TYPE, **given, "x-y": "z"})
    assert (answer.status_code, answer.content) == (200, b"from the SuperLink")
    ((path, body, passed),) = rig.reached
    assert (path, body) == ("/v1/fleet/push-object", piece())
    assert passed["flwr-signature"] == given["flwr-signature"]
    assert "x-y" not in passed


def test_a_removed_site_is_refused_from_the_next_request_on(rig):
    call = ("POST", "/v1/fleet/pull-messages", b"")
    assert rig(*call, headers={**TYPE, **headers(SITE)}).status_code == 200
    AllowList(rig.folder).remove("lyon")
    assert rig(*call, headers={**TYPE, **headers(SITE)}).status_code == 401


def test_a_site_cannot_speak_for_another_node(rig):
    given = {**TYPE, **headers(SITE)}
    answer = rig("POST", "/v1/fleet/push-messages", push(7, [8]), headers=given)
    assert (answer.status_code, rig.reached) == (403, [])
    (refusal,) = rig.refusals()
    assert refusal["site"] == "lyon"
    assert "identity" in refusal["refused"]
    own = rig("POST", "/v1/fleet/push-messages", push(7, [7]), headers=given)
    assert own.status_code == 200


@pytest.mark.parametrize("body", [push(7, [7, 8]), push(7, []), b"\xff\xff\xff"])
def test_a_message_that_is_not_one_of_its_own_is_refused(rig, body):
    given = {**TYPE, **headers(SITE)}
    answer = rig("POST", "/v1/fleet/push-messages", body, headers=given)
    assert answer.status_code in (400, 403)
    assert rig.reached == []


@pytest.mark.parametrize(("wanted", "recorded"), [([], 1), (["a" * 64], 0)])
def test_a_reply_that_the_superlink_does_not_take_is_recorded(rig, wanted, recorded):
    said = PushMessagesResponse(objects_to_push=wanted, session_id="s").SerializeToString()

    rig.answering(said)
    given = {**TYPE, **headers(SITE)}
    answer = rig("POST", "/v1/fleet/push-messages", push(7, [7]), headers=given)
    assert (answer.status_code, answer.content) == (200, said)
    assert [r["refused"] for r in rig.refusals()] == [NOT_TAKEN] * recorded
    assert {r["site"] for r in rig.refusals()} <= {"lyon"}


def test_a_message_that_names_one_piece_ten_thousand_times_is_refused(rig):
    given = {**TYPE, **headers(SITE)}
    answer = rig("POST", "/v1/fleet/push-messages", push(7, [7], 10_000), headers=given)
    assert (answer.status_code, rig.reached) == (413, [])


def test_a_request_of_two_gigabytes_is_refused_by_its_length_alone(rig):
    given = {**TYPE, **headers(SITE), "content-length": str(2_000_000_000)}
    answer = rig("POST", "/v1/fleet/push-object", b"", headers=given)
    assert (answer.status_code, rig.reached) == (413, [])


def test_pieces_that_add_up_to_more_than_a_message_may_weigh_are_refused(rig):
    rig = Rig(rig.folder, message_mb=1.0)
    given = {**TYPE, **headers(SITE)}
    wanted = [f"{n:064x}" for n in range(3)]
    rig.answering(PushMessagesResponse(objects_to_push=wanted).SerializeToString())

    def announced():
        return rig("POST", "/v1/fleet/push-messages", push(7, [7]), headers=given).status_code

    def sent():
        body = piece(400_000)
        return rig("POST", "/v1/fleet/push-object", body, headers=given).status_code

    assert announced() == 200
    assert [sent() for _ in range(4)] == [200, 200, 413, 413]
    # To announce it once more does not begin it anew.
    assert announced() == 200
    assert sent() == 413
    assert {r["refused"] for r in rig.refusals()} == {"a message of more than message_mb"}
    rig.gateway.mail.hand("lyon", "ef" * 32, [])
    answer = push(7, [7], answers="ef" * 32, tree=ObjectTree(object_id=wanted[0]))
    # Nor does an answer to another message that names the same pieces.
    assert rig("POST", "/v1/fleet/push-messages", answer, headers=given).status_code == 200
    assert sent() == 413


def test_a_body_without_a_length_or_of_another_type_is_refused(rig):
    given = headers(SITE)

    async def pieces():
        yield b"x"

    assert rig("POST", "/v1/fleet/pull-messages", pieces(), headers={**TYPE, **given}
               ).status_code == 411  # fmt: skip
    answer = rig("POST", "/v1/fleet/pull-messages", b"x", headers=given)
    assert answer.status_code == 415


def test_a_key_that_asks_too_often_has_to_wait(rig):
    rig = Rig(rig.folder, requests_per_s=0.5)
    given = {**TYPE, **headers(SITE)}
    codes = [
        rig("POST", "/v1/fleet/pull-messages", b"", headers=given).status_code for _ in range(8)
    ]
    assert codes[:5] == [200] * 5
    assert codes[-1] == 429


def test_a_superlink_that_is_away_is_not_now_rather_than_never(rig):
    async def nobody(request):
        raise httpx.ConnectError("refused")

    rig.gateway._upstream = httpx.AsyncClient(
        base_url="https://superlink", transport=httpx.MockTransport(nobody)
    )
    answer = rig("POST", "/v1/fleet/pull-messages", b"", headers={**TYPE, **headers(SITE)})
    assert answer.status_code == 503


def test_without_a_run_the_announcement_says_so(rig):
    answer = rig("GET", "/v1/announcement", headers=headers(SITE))
    assert (answer.status_code, answer.json()) == (200, {"run": None})
    assert answer.headers["fieldmark-version"]


def test_refusals_beyond_so_many_a_minute_are_counted_and_not_written(rig, monkeypatch):
    monkeypatch.setattr("fieldmark.server.deployment.meters.RECORDS_PER_MINUTE", 3)
    for _ in range(10):
        rig("GET", "/nothing")
    assert 3 <= len(rig.refusals()) <= 6
    assert sum(rig.gateway.meter.refusals.values()) == 10


def tree_of(depth):
    tree = ObjectTree(object_id=f"{0:064x}")
    node = tree
    for n in range(1, depth):
        node = node.children.add(object_id=f"{n:064x}")
    return tree


FALSE_TREES = {
    "deep": (tree_of(6), 413),
    "very deep": (tree_of(90), 413),
    "wide": (ObjectTree(object_id="0" * 64, children=[ObjectTree()] * 20_000), 413),
    "no ids": (ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id="x")]), 400),
    "twice": (ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id="1" * 64)] * 2), 400),
    "round": (ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id="0" * 64)]), 400),
    "the question's own object": (
        ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id="cd" * 32)]),
        403,
    ),
}


@pytest.mark.parametrize("kind", FALSE_TREES)
def test_a_message_whose_tree_is_not_its_own_or_too_large_never_reaches_the_superlink(rig, kind):
    tree, status = FALSE_TREES[kind]
    given = {**TYPE, **headers(SITE)}
    body = push(7, [7], tree=tree)
    assert rig("POST", "/v1/fleet/push-messages", body, headers=given).status_code == status
    assert rig.reached == []
    (refusal,) = rig.refusals()
    assert (refusal["site"], refusal["status"]) == ("lyon", status)


def test_a_message_that_names_an_object_of_another_sites_answer_is_refused(rig):
    theirs = frozenset({"99" * 32})
    rig.gateway.mail.hand("bergen", "77" * 32, ["77" * 32])
    rig.gateway.mail.opened("bergen", Pushed(8, 8, "77" * 32, theirs), theirs)
    tree = ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id="99" * 32)])
    given = {**TYPE, **headers(SITE)}
    for _ in range(2):
        answer = rig("POST", "/v1/fleet/push-messages", push(7, [7], tree=tree), headers=given)
        assert (answer.status_code, rig.reached) == (403, [])


def test_a_tree_that_is_rooted_at_another_object_than_its_message_is_refused(rig):
    request = PushMessagesRequest.FromString(push(7, [7]))
    request.messages_list[0].metadata.message_id = "9" * 64
    answer = rig(
        "POST", "/v1/fleet/push-messages", request.SerializeToString(),
        headers={**TYPE, **headers(SITE)},
    )  # fmt: skip
    assert (answer.status_code, rig.reached) == (400, [])


def test_a_site_answers_only_what_it_was_handed_and_not_without_end(rig):
    given = {**TYPE, **headers(SITE)}
    call = ("POST", "/v1/fleet/push-messages")
    assert rig(*call, push(7, [7], answers="12" * 32), headers=given).status_code == 403
    assert rig.reached == []
    codes = [rig(*call, push(7, [7]), headers=given).status_code for _ in range(20)]
    assert codes == [200] * 16 + [429] * 4


def test_an_answer_that_a_superlink_which_is_away_never_heard_of_may_be_announced_again(rig):
    given = {**TYPE, **headers(SITE)}
    there = rig.gateway._upstream

    async def nobody(request):
        raise httpx.ConnectError("refused")

    rig.gateway._upstream = httpx.AsyncClient(
        base_url="https://superlink", transport=httpx.MockTransport(nobody)
    )
    call = ("POST", "/v1/fleet/push-messages", push(7, [7]))
    assert {rig(*call, headers=given).status_code for _ in range(20)} == {503}
    rig.gateway._upstream = there
    assert rig(*call, headers=given).status_code == 200


def test_a_piece_that_nobody_asked_for_never_reaches_the_superlink(rig):
    given = {**TYPE, **headers(SITE)}
    rig.opened("1" * 64)
    for body in (piece(), piece(object_id="cd" * 32)):
        assert rig("POST", "/v1/fleet/push-object", body, headers=given).status_code == 403
    assert rig.reached == []
    assert {r["refused"] for r in rig.refusals()} == {"a piece of no message that it has announced"}


CONTENT = b"\x22\x05hello"
OBJECT = b"\x1a\x40" + b"0" * 64
FALSE_PIECES = {
    "another id behind the content": piece() + OBJECT,
    "two ids": OBJECT + OBJECT + CONTENT,
    "content first": CONTENT + OBJECT,
    "content twice": OBJECT + CONTENT + CONTENT,
    "cut short": piece()[:-20],
    "longer than it says": piece() + b"\x00" * 500,
    "no content": OBJECT,
    "empty": b"",
    "zeros": bytes(2000),
    "a head without end": b"\x1a\xff\x7f" + bytes(3000),
    "session twice": piece() + b"\x2a\x01s",
}


@pytest.mark.parametrize("kind", FALSE_PIECES)
def test_a_piece_that_two_readers_could_read_differently_is_refused(rig, kind):
    rig.opened("0" * 64)
    given = {**TYPE, **headers(SITE)}
    body = FALSE_PIECES[kind]
    assert rig("POST", "/v1/fleet/push-object", body, headers=given).status_code == 400
    assert rig.reached == []
    assert [r["site"] for r in rig.refusals()] == ["lyon"]


def test_a_site_pulls_and_confirms_only_what_it_was_handed(rig):
    given = {**TYPE, **headers(SITE)}
    rig.gateway.mail.hand("bergen", "77" * 32, ["77" * 32, "78" * 32])

    def asked(call, request):
        path = f"/v1/fleet/{call}"
        return rig("POST", path, request.SerializeToString(), headers=given).status_code

    confirm, pull = "confirm-message-received", "pull-object"
    assert asked(pull, PullObjectRequest(object_id="78" * 32)) == 403
    assert asked(confirm, ConfirmMessageReceivedRequest(message_object_id="77" * 32)) == 403
    assert rig.reached == []
    assert asked(pull, PullObjectRequest(object_id="cd" * 32)) == 200
    assert asked(confirm, ConfirmMessageReceivedRequest(message_object_id=QUESTION)) == 200
    assert len(rig.reached) == 2


def test_what_the_superlink_hands_over_is_the_sites_to_pull_and_to_answer(rig):
    given = {**TYPE, **headers(SITE)}
    tree = ObjectTree(object_id="55" * 32, children=[ObjectTree(object_id="56" * 32)])
    metadata = Metadata(message_id="55" * 32)
    rig.answering(
        PullMessagesResponse(
            messages_list=[Message(metadata=metadata)], message_object_trees=[tree]
        ).SerializeToString()
    )
    assert rig("POST", "/v1/fleet/pull-messages", b"", headers=given).status_code == 200
    rig.gateway.mail.check_pull("lyon", "56" * 32)
    rig.gateway.mail.check_confirm("lyon", "55" * 32)
    # The gateway's process may be another one by the time it answers.
    again = Rig(rig.folder)
    answer = push(7, [7], answers="55" * 32)
    assert again("POST", "/v1/fleet/push-messages", answer, headers=given).status_code == 200


@pytest.mark.parametrize("call", ["pull-messages", "activate-node", "get-run", "pull-object"])
def test_a_call_that_carries_no_piece_is_small(rig, call):
    given = {**TYPE, **headers(SITE)}
    answer = rig("POST", f"/v1/fleet/{call}", bytes(100_000), headers=given)
    assert (answer.status_code, rig.reached) == (413, [])


def test_failures_of_the_superlink_and_of_the_gateway_are_written_down(rig):
    given = {**TYPE, **headers(SITE)}
    call = ("POST", "/v1/fleet/pull-messages", b"")

    async def nothing():
        yield b""

    async def failed(request):
        return httpx.Response(500, content=nothing())

    rig.gateway._upstream = httpx.AsyncClient(
        base_url="https://superlink", transport=httpx.MockTransport(failed)
    )
    assert rig(*call, headers=given).status_code == 500

    async def nobody(request):
        raise httpx.ConnectError("refused")

    rig.gateway._upstream = httpx.AsyncClient(
        base_url="https://superlink", transport=httpx.MockTransport(nobody)
    )
    assert rig(*call, headers=given).status_code == 503
    odd = [(n.encode(), v.encode()) for n, v in given.items()] + [(b"flwr-x", b"\xe9")]
    assert rig(*call, headers=odd).status_code == 400
    rig.gateway._upstream = None
    with contextlib.suppress(AttributeError):
        rig(*call, headers=given)
    assert [r["status"] for r in rig.refusals()] == [500, 503, 400, 500]
    assert [r["site"] for r in rig.refusals()] == ["lyon"] * 3 + [None]


EMPTY = PullMessagesResponse().SerializeToString()
HANDED = PullMessagesResponse(
    messages_list=[Message(metadata=Metadata(message_id="55" * 32))],
    message_object_trees=[ObjectTree(object_id="55" * 32)],
).SerializeToString()


@pytest.fixture
def pulled(rig):
    """A call for messages that the SuperLink has none for until something happens."""
    sent, asked = sent_file(rig.folder), []
    sent.path.parent.mkdir(parents=True, exist_ok=True)

    def pull(meanwhile=lambda: None, *, hold_s=20.0):
        rig.gateway._settings = GatewaySettings(hold_s=hold_s)

        def answer(request):
            asked.append(request.url.path)
            said = HANDED if len(asked) > 1 else EMPTY

            async def pieces():
                yield said

            return httpx.Response(200, content=pieces())

        rig.gateway._upstream = httpx.AsyncClient(
            base_url="https://superlink", transport=httpx.MockTransport(answer)
        )
        threading.Timer(0.3, meanwhile).start()
        started = time.monotonic()
        given = {**TYPE, **headers(SITE)}
        response = rig("POST", "/v1/fleet/pull-messages", b"", headers=given)
        return response, len(asked), time.monotonic() - started

    return pull


def test_a_call_for_messages_is_held_until_a_run_has_sent_one(rig, pulled):
    response, asked, seconds = pulled(sent_file(rig.folder).notify)
    assert response.content == HANDED
    assert asked == 2
    assert seconds < 10.0
    # It is the site's now, as if it had been there from the beginning.
    rig.gateway.mail.check_confirm("lyon", "55" * 32)


@pytest.mark.parametrize("hold_s", [0.0, 0.4], ids=["not at all", "its time is over"])
def test_a_call_that_is_held_no_longer_says_that_there_is_no_message(pulled, hold_s):
    response, asked, seconds = pulled(hold_s=hold_s)
    assert (response.status_code, response.content, asked) == (200, EMPTY, 1)
    assert hold_s <= seconds < 10.0


def test_a_site_that_is_removed_while_its_call_is_held_gets_no_message(rig, pulled):
    def remove():
        AllowList(rig.folder).remove("lyon")
        sent_file(rig.folder).notify()

    response, asked, _ = pulled(remove)
    assert (response.status_code, asked) == (401, 1)
