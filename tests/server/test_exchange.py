"""Who is let in at the roll call, and which reply belongs to which request."""

import json

import numpy as np
import pytest
from flwr.app import Error, Message

import server.exchange
from fgvc_core.errors import RunFailed
from fgvc_core.protocol.envelope import seal, unseal
from fgvc_core.protocol.keys import new_key, public_text, write_private
from fgvc_core.protocol.messages import Reply, Request, new_nonce
from fgvc_core.recipe import parse_recipe
from fgvc_core.supervision import write_json
from fgvc_core.wire.arrays import pack_all
from fgvc_core.wire.cores import WORTH_THREADS
from server.ahead import LookAhead
from server.books import Books
from server.checkpoint import RunState
from server.events import EventLog
from server.exchange import Exchange
from server.home import CoordinatorHome, ServerSettings, write_home
from server.intake import Intake
from server.records import from_message, to_array_record, to_content
from server.screening import Screening
from server.standing import Standing
from simulations.flower_internals import enter_run, give_id

KEYS = {"site-1": new_key(), "site-2": new_key()}
ARRAYS = to_array_record(pack_all({"w": np.ones(3, np.float32)}))


class Nodes:
    """A grid whose nodes answer the roll call with what ``answers`` makes of it."""

    def __init__(self, *answers):
        self.answers = dict(enumerate(answers, start=2))
        self.sent = {}
        enter_run(1)

    def get_node_ids(self):
        return list(self.answers)

    def push_messages(self, messages):
        ids = [give_id(message) for message in messages]
        self.sent.update(zip(ids, messages, strict=True))
        return ids

    def pull_messages(self, ids):
        replies = []
        for message_id in ids:
            message = self.sent[message_id]
            body = Request.parse(message.content.config_records["envelope"]["body"])
            content = self.answers[message.metadata.dst_node_id](body)
            if content is not None:
                replies.append(Message(content, reply_to=message))
        return replies


def answering(site, key=None, signer=None, tensors=None, **changes):
    key = key or KEYS[site]

    def answer(request):
        packed = pack_all(tensors or {})
        fields = request.model_dump(include={"kind", "run", "round", "nonce", "recipe_digest"})
        reply = Reply(**{
            **fields, "site": site, "code": "ok", "public_key": public_text(key.public_key()),
            "tensors": {n: t.digest() for n, t in packed.items()}, **changes,
        })  # fmt: skip
        return to_content(seal(signer or key, reply), to_array_record(packed))

    return answer


@pytest.fixture
def exchange(tmp_path, monkeypatch):
    monkeypatch.setattr(server.exchange, "ROLL_CALL_DEADLINE_S", 0.05)
    (tmp_path / "coordinator").mkdir()
    write_private(new_key(), tmp_path / "coordinator" / "key")
    sites = {name: public_text(key.public_key()) for name, key in KEYS.items()}
    recipe = parse_recipe("", ["data.path=secret/place"])
    settings = ServerSettings(cache=str(tmp_path), poll_s=0.01, wait_for_sites_s=0.01)
    write_home(tmp_path, recipe, ("a", "b"), sites, settings)
    home = CoordinatorHome.open(tmp_path)

    def make(*answers):
        log = EventLog(tmp_path / "events.jsonl")
        return Exchange(Nodes(*answers), home, "run-1", log), home

    make.events = lambda: [
        json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()
    ]
    return make


def test_each_registered_site_is_found_at_its_node(exchange):
    call, _ = exchange(answering("site-2"), answering("site-1"))
    assert call.roll_call() == ["site-1", "site-2"]
    assert call.nodes == {"site-2": 2, "site-1": 3}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (answering("site-2", key=new_key()), "not registered"),
        (answering("site-2", signer=new_key()), "signature"),
        (answering("site-2", key=KEYS["site-1"]), "its key is 'site-1'"),
        (answering("site-1"), "another node"),
        (answering("site-2", nonce=new_nonce()), "another roll call"),
        (answering("site-2", run="run-0"), "another roll call"),
        (answering("site-2", code="unavailable"), "unavailable"),
        (answering("site-2", public_key=""), "cannot be read"),
        (answering("site-2", tensors={"w": np.ones(2, np.float32)}), "carries tensors"),
        (lambda request: None, "No answer"),
    ],
    ids=["stranger", "forged", "wrong name", "twice", "replayed", "another run", "refused",
         "no key", "tensors", "silent"],
)  # fmt: skip
def test_a_node_that_proves_nothing_is_left_out_with_its_reason(exchange, wrong, said):
    call, _ = exchange(answering("site-1"), wrong)
    assert call.roll_call() == ["site-1"]
    assert call.nodes == {"site-1": 2}
    (refused,) = [event for event in exchange.events() if not event["accepted"]]
    assert said in refused["reason"]
    assert (refused["site"], refused["node"]) == (None, 3)


def test_a_run_without_a_single_site_fails(exchange):
    call, _ = exchange(answering("site-1", signer=new_key()))
    with pytest.raises(RunFailed, match="None of 1 nodes") as caught:
        call.roll_call()
    assert caught.value.exit_code == 6


def test_the_announcement_is_signed_and_does_not_say_where_the_pictures_are(exchange):
    call, home = exchange(answering("site-1"), answering("site-2"))
    call.roll_call()
    for message in call._grid.sent.values():
        sealed, packed = from_message(message)
        body = unseal(Request, sealed, home.key.public_key(), {})
        assert packed == {}
        assert parse_recipe(body.recipe).digest == home.recipe.digest == body.recipe_digest
        assert "secret/place" not in sealed.text


def test_a_request_is_signed_with_its_tensors_and_no_two_share_a_nonce(exchange):
    call, home = exchange(answering("site-1"), answering("site-2"))
    call.roll_call()
    pairs = [call.compose("train", 1, site, ARRAYS, 0.5) for site in call.nodes]
    assert len({request.nonce for request, _ in pairs}) == 2
    for request, message in pairs:
        sealed, packed = from_message(message)
        digests = {name: tensor.digest() for name, tensor in packed.items()}
        assert unseal(Request, sealed, home.key.public_key(), digests) == request
        assert message.metadata.dst_node_id == call.nodes[request.site]


def test_answers_come_in_the_order_of_the_requests_and_silence_ends_at_the_deadline(exchange):
    call, _ = exchange(answering("site-1"), answering("site-2"))
    call.roll_call()
    call._grid.answers[2] = lambda request: None
    requests = [call.compose("score", 1, site, ARRAYS) for site in ("site-1", "site-2")]
    answers = list(call.ask(requests, 0.1))
    assert [answer.request.site for answer in answers] == ["site-1", "site-2"]
    assert [answer.message is None for answer in answers] == [True, False]
    assert answers[0].seconds < 5


def test_large_answers_belong_to_their_requests_although_the_next_is_fetched_ahead(
    exchange, monkeypatch
):
    large = {"w": np.ones(WORTH_THREADS // 4, np.float32)}
    call, _ = exchange(answering("site-1"), answering("site-2"))
    call.roll_call()
    call._grid.answers[2] = answering("site-1", tensors=large)
    call._grid.answers[3] = answering("site-2", tensors=large)
    looked, hashed = [], []
    look = LookAhead.look
    monkeypatch.setattr(LookAhead, "look", lambda self, i: looked.append(i) or look(self, i))
    requests = [call.compose("train", 1, site, ARRAYS) for site in ("site-2", "site-1", "site-2")]
    for answer in call.ask(requests, 5.0):
        sealed, packed = from_message(answer.message)
        digests = {name: tensor.digest() for name, tensor in packed.items()}
        reply = unseal(Reply, sealed, call.keys[answer.request.site], digests)
        assert reply.nonce == answer.request.nonce
        assert answer.digests in (None, digests)
        hashed.append(answer.digests is not None)
    assert len(looked) == 2
    assert hashed == [False, True, True]


class Restarting(Nodes):
    """The node 3 goes away in the midst of its first call, and is back after a while."""

    def __init__(self, *answers, back_after):
        super().__init__(*answers)
        self.calls, self.looks, self.back_after = 0, 0, back_after

    def get_node_ids(self):
        self.looks += 1
        away = self.calls == 1 and self.looks <= self.back_after
        return [node for node in super().get_node_ids() if not (away and node == 3)]

    def push_messages(self, messages):
        self.calls += sum(message.metadata.dst_node_id == 3 for message in messages)
        return super().push_messages(messages)

    def pull_messages(self, ids):
        (message,) = (self.sent[message_id] for message_id in ids)
        if message.metadata.dst_node_id == 3 and self.calls == 1:
            return [Message(Error(5, "node unavailable"), reply_to=message)]
        return super().pull_messages(ids)


def test_a_node_that_starts_anew_in_the_midst_of_its_call_is_called_again_when_it_is_back(exchange):
    call, _ = exchange(answering("site-1"), answering("site-2"))
    call._grid = Restarting(answering("site-1"), answering("site-2"), back_after=5)
    assert call.roll_call() == ["site-1", "site-2"]
    assert call._grid.calls == 2
    said = [(e["accepted"], e["reason"]) for e in exchange.events() if e["node"] == 3]
    assert [accepted for accepted, _ in said] == [False, True]
    assert "error code 5" in said[0][1]


def test_one_that_is_not_back_in_time_is_called_before_a_later_round(exchange, monkeypatch):
    monkeypatch.setattr(server.exchange, "AGAIN_S", 0.05)
    call, _ = exchange(answering("site-1"), answering("site-2"))
    call._grid = Restarting(answering("site-1"), answering("site-2"), back_after=10**9)
    assert call.roll_call() == ["site-1"]
    assert call.refresh() == ["site-1"]
    call._grid.back_after = 0
    assert call.refresh() == ["site-1", "site-2"]


REMOVED = "Site 'site-2' was removed from the allow-list."


def removing(tmp_path, then):
    """An answer before which the site is taken off the run's allow-list."""

    def answer(request):
        path = tmp_path / "coordinator" / "sites.json"
        listed = {n: key for n, key in json.loads(path.read_text()).items() if n != "site-2"}
        write_json(path, listed)
        return then(request)

    return answer


@pytest.mark.parametrize(
    "then", [lambda request: None, answering("site-2")], ids=["silent", "replying"]
)
def test_a_site_that_is_removed_while_it_is_asked_is_refused_at_once(exchange, tmp_path, then):
    call, _ = exchange(answering("site-1"), answering("site-2"))
    call.roll_call()
    call._grid.answers[3] = removing(tmp_path, then)
    requests = [call.compose("train", 1, site, ARRAYS) for site in ("site-1", "site-2")]
    first, second = call.ask(requests, deadline_s=3600.0)
    assert (first.message is not None, first.refusal) == (True, "")
    assert (second.message, second.refusal) == (None, REMOVED)
    assert second.seconds < 60
    # Nor is it looked for again.
    assert list(call.late(2)) == []


def test_the_refusal_of_a_removed_site_is_recorded(exchange, tmp_path):
    call, _ = exchange(answering("site-1"), answering("site-2"))
    call.roll_call()
    call._grid.answers[3] = removing(tmp_path, answering("site-2"))
    state, events = RunState(run="run-1"), EventLog(tmp_path / "events.jsonl")
    books, standing = Books(state, events), Standing(state.standing, 3, events)
    books.open(ARRAYS)
    intake = Intake(state, Screening({}, call.keys, 1.0), books, standing, 3600.0)
    accepted = []
    asked = [call.compose("score", 1, "site-2", ARRAYS)]
    assert list(intake.sound(call.ask(asked, 3600.0), accepted)) == []
    assert accepted == []
    (recorded,) = [event for event in exchange.events() if event["event"] == "reply"]
    assert (recorded["site"], recorded["round"]) == ("site-2", 1)
    assert (recorded["accepted"], recorded["reason"]) == (False, REMOVED)
    assert state.sites["site-2"]["refused"] == 1
    # It has not sent anything unsound: it was shown the door.
    assert state.standing == {}


def test_a_reply_that_names_another_message_is_never_taken(exchange, monkeypatch):
    call, _ = exchange(answering("site-1"), answering("site-2"))
    call.roll_call()
    first, second = (call.compose("score", 1, site, ARRAYS) for site in ("site-1", "site-2"))
    monkeypatch.setattr(
        call._grid,
        "pull_messages",
        lambda ids: [Message(Error(1, "late"), reply_to=first[1])],
    )
    answers = list(call.ask([first, second], 0.05))
    assert [answer.message is None for answer in answers] == [False, True]
