"""Requests are signed, and a reply belongs to the request that it answers."""

import json
import time

import numpy as np
import pytest
from flwr.app import Error, Message
from nodes_lab import ARRAYS, Nodes, answering

from fgvc_core.files import replace_private_json
from fgvc_core.flower.records import from_message
from fgvc_core.protocol.messages import Reply, Request, unseal
from fgvc_core.wire.arrays import WORTH_THREADS
from fieldmark.server.run_log.checkpoint import RunState
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.screening.checks import Screening
from fieldmark.server.screening.replies import ReplyScreening
from fieldmark.server.screening.tally import Tally
from fieldmark.server.screening.trust import SiteTrust
from fieldmark.server.sites.prefetch import LookAhead

REMOVED = "Site 'site-2' was removed from the allow-list."


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


class Slow(Nodes):
    """Keeps its own time: who asks for the second site's reply before it is due moves the clock."""

    now, due = 0.0, 10.0

    def clock(self):
        return self.now

    def arrived(self, message_id):
        return self.due if self._is_slow(message_id) and self.due <= self.now else None

    def pull_messages(self, ids):
        if self._is_slow(ids[0]) and self.due > self.now:
            # Long enough for the other thread to look at the clock before it moves.
            time.sleep(0.2)
            self.now = self.due
            return []
        return super().pull_messages(ids)

    def _is_slow(self, message_id):
        message = self.sent[message_id]
        return message.metadata.dst_node_id == 3 and message.metadata.group_id == "1"


@pytest.mark.parametrize(("deadline", "in_time"), [(5.0, False), (15.0, True)])
def test_a_reply_is_late_by_its_arrival_although_it_was_looked_for_ahead(
    exchange, monkeypatch, deadline, in_time
):
    monkeypatch.setattr("fieldmark.server.sites.messages.is_large", lambda message: True)
    call, _ = exchange(answering("site-1"), answering("site-2"), grid=Slow)
    call.roll_call()
    requests = [call.compose("train", 1, site, ARRAYS) for site in ("site-1", "site-2")]
    first, second = call.ask(requests, deadline)
    assert (first.message is not None, second.message is not None) == (True, in_time)
    assert len(list(call.late(2))) == (0 if in_time else 1)


def removing(tmp_path, then):
    """An answer before which the site is taken off the run's allow-list."""

    def answer(request):
        path = tmp_path / "coordinator" / "sites.json"
        listed = {n: key for n, key in json.loads(path.read_text()).items() if n != "site-2"}
        replace_private_json(path, listed)
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
    books, standing = Tally(state, events), SiteTrust(state.standing, 3, events)
    books.open(ARRAYS)
    intake = ReplyScreening(state, Screening({}, call.keys, 1.0), books, standing, 3600.0)
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
