"""Whatever a registered site makes of a reply's objects: the run goes on, and the site is named."""

import time
import tracemalloc

import httpx
import numpy as np
import pytest
from nodes_lab import ARRAYS, answering
from superlink_lab import MALFORMED, MemoryLink, failure

import fieldmark.server.sites.messages
from fgvc_core.flower.records import FAULTS, TOO_LARGE, UNREADABLE, WITHDRAWN
from fieldmark.server.run_log.checkpoint import RunState
from fieldmark.server.screening.checks import Screening
from fieldmark.server.screening.comparison import UpdateHistory
from fieldmark.server.screening.replies import ReplyScreening
from fieldmark.server.screening.tally import Tally
from fieldmark.server.screening.trust import SiteTrust

DEADLINE_S = 0.2


@pytest.fixture
def federation(exchange, monkeypatch):
    """Two sites behind the SuperLink, the first of which a test spoils; it is node 2."""
    monkeypatch.setattr(fieldmark.server.sites.messages, "GRACE_FOR_PIECES_S", 0.3)
    link = MemoryLink(answering("site-1"), answering("site-2"))
    call, home = exchange(grid=lambda: link.grid())
    call.roll_call()
    assert sorted(call.nodes) == ["site-1", "site-2"]
    for node, site in ((2, "site-1"), (3, "site-2")):
        link.answers[node] = answering(site, tensors={"w": np.ones(3, np.float32)}, examples=5)
    return link, call, home, exchange.events


def asked(call, kind="train"):
    requests = [call.compose(kind, 1, site, ARRAYS) for site in ("site-1", "site-2")]
    return list(call.ask(requests, DEADLINE_S))


def taken(call, home, answers, limit=3):
    """The sites whose replies are sound, and the standing of both."""
    state = RunState(run="run-1")
    standing = SiteTrust(state.standing, limit, call._events)
    screening = Screening(
        {},
        call.keys,
        1.0,
        protected=False,
        max_weight=1e6,
        history=UpdateHistory(home.recipe.federation),
        wire=home.recipe.wire,
        ledgers=call.ledgers,
    )
    intake = ReplyScreening(state, screening, Tally(state, call._events), standing, DEADLINE_S)
    accepted = []
    list(intake.sound(iter(answers), accepted))
    return [screened.reply.site for screened in accepted], state.standing


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_reply_of_objects_that_make_no_message_is_that_sites_fault_alone(federation, kind):
    link, call, home, events = federation
    link.spoil[2] = MALFORMED[kind]
    lying, honest = asked(call)
    assert (lying.request.site, lying.message.error.code) == ("site-1", UNREADABLE)
    assert not honest.message.has_error()
    taken(call, home, [lying])
    (event,) = [e for e in events() if e["event"] == "reply"]
    assert (event["site"], event["reason"]) == ("site-1", FAULTS[UNREADABLE])


@pytest.mark.parametrize("kind", MALFORMED)
def test_an_answer_to_the_roll_call_that_is_no_message_leaves_the_others_in(exchange, kind):
    link = MemoryLink(answering("site-1"), answering("site-2"))
    link.spoil[2] = MALFORMED[kind]
    call, _ = exchange(grid=lambda: link.grid())
    assert call.roll_call() == ["site-2"]
    refused = [e for e in exchange.events() if not e["accepted"]]
    assert [(e["node"], e["reason"]) for e in refused] == [(2, FAULTS[UNREADABLE])]


def test_who_sends_what_cannot_be_read_is_counted_and_set_aside(federation):
    link, call, home, events = federation
    link.spoil[2] = MALFORMED["a config record"]
    _, standing = taken(call, home, asked(call)[:1])
    assert standing["site-1"]["refused_in_row"] == 1
    SiteTrust(standing, 1, call._events).close(1)
    assert [e["site"] for e in events() if e["event"] == "site_set_aside"] == ["site-1"]


def test_a_reply_that_is_announced_and_never_sent_does_not_outlast_the_deadline(federation):
    link, call, home, _ = federation
    link.withheld[2] = 100
    started = time.monotonic()
    staller, honest = asked(call)
    assert time.monotonic() - started < DEADLINE_S + 2
    assert (staller.message, staller.stalled) == (None, True)
    assert "0 of 6 pieces" in staller.refusal
    assert honest.message is not None
    _, standing = taken(call, home, [staller])
    assert standing["site-1"]["refused_in_row"] == 1


def test_a_slow_line_is_told_from_a_staller_by_its_progress_and_may_come_late(federation):
    link, call, home, _ = federation
    link.withheld[2] = 1
    slow, _ = asked(call)
    assert (slow.message, slow.stalled) == (None, False)
    assert "5 of 6 pieces" in slow.refusal
    _, standing = taken(call, home, [slow])
    assert standing.get("site-1", {"refused_in_row": 0})["refused_in_row"] == 0
    assert list(call.late(2)) == []
    link.arrive()
    (answer,) = call.late(2)
    assert (answer.request.site, answer.message.has_error()) == ("site-1", False)


def test_a_reply_that_is_never_finished_counts_once_nobody_waits_for_it_any_more(federation):
    link, call, home, _ = federation
    link.withheld[2] = 1
    asked(call)
    assert list(call.late(3)) == []
    (answer,) = call.late(4)
    assert (answer.message, answer.stalled) == (None, True)
    _, standing = taken(call, home, [answer])
    assert standing["site-1"]["refused_in_row"] == 1
    assert list(call.late(5)) == []
    assert call._grid.arriving(next(iter(link.asked))) is None


def test_a_reply_whose_session_lapsed_is_the_sites_fault(federation):
    link, call, _, _ = federation
    link.withheld[2] = 1
    asked(call)
    link.lapse()
    (answer,) = call.late(2)
    assert answer.message.error.code == WITHDRAWN


def test_a_chunk_that_is_named_again_and_again_is_never_joined(federation):
    link, call, _, _ = federation
    link.answers[2] = answering("site-1", tensors={"w": np.ones(1_000_000, np.float32)})
    link.spoil[2] = MemoryLink.chunk_again(150)
    tracemalloc.start()
    lying, honest = asked(call)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lying.message.error.code == UNREADABLE
    assert not honest.message.has_error()
    assert peak < 60e6


def test_a_reply_is_bounded_by_the_recipe_before_it_is_put_together(federation):
    link, call, _, _ = federation
    call._grid.limit_reply(2500)
    link.answers[2] = answering("site-1", tensors={"w": np.ones(1000, np.float32)})
    lying, honest = asked(call)
    assert lying.message.error.code == TOO_LARGE
    assert not honest.message.has_error()


def test_an_answer_to_the_roll_call_weighs_a_megabyte_at_most(exchange):
    def heavy(nbytes):
        return answering("site-2", tensors={"w": np.ones(nbytes // 4, np.float32)})

    for nbytes, said in ((2_000_000, FAULTS[TOO_LARGE]), (500_000, "carries tensors")):
        link = MemoryLink(answering("site-1"), heavy(nbytes))
        call, _ = exchange(grid=lambda: link.grid())  # noqa: B023
        assert call.roll_call() == ["site-1"]
        # What comes of it in a round may be as large as the recipe says.
        assert call._grid._arrivals.limit_bytes > 1e8
        assert call._grid._arrivals._limits == {}
        told = [e for e in exchange.events() if e["event"] == "roll_call" and not e["accepted"]]
        assert said in told[-1]["reason"]


def test_a_reply_that_says_that_it_answers_another_message_is_the_sites_fault(federation):
    link, call, _, _ = federation

    def elsewhere(graph):
        content = graph.contents[graph.root]
        answers = graph.proto.metadata.reply_to_message_id.encode()
        return graph.replace_root(content.replace(answers, b"f" * 64))

    link.spoil[2] = elsewhere
    lying, honest = asked(call)
    assert lying.message.error.code == UNREADABLE
    assert not honest.message.has_error()


def test_a_failure_of_the_superlink_over_one_reply_is_no_reply_and_any_other_ends_the_run(
    federation,
):
    link, call, _, _ = federation

    def failing(status):
        def spoil(graph):
            raise failure(status)

        return spoil

    link.spoil[2] = failing(500)
    lying, honest = asked(call)
    assert (lying.message, honest.message.has_error()) == (None, False)
    link.spoil[2] = failing(401)
    with pytest.raises(httpx.HTTPStatusError):
        asked(call)


def test_the_objects_of_a_message_cannot_be_computed_before_it_is_sent(federation):
    link, call, _, _ = federation
    pushed = []
    for _ in range(2):
        link.pushed.clear()
        _, message = call.compose("train", 1, "site-1", ARRAYS)
        call._grid._packed = None, None
        call._grid.push_messages([message])
        pushed.append(set(link.pushed))
    first, again = pushed
    # The same model to the same site, and no object of it is the same.
    assert not first & again


def test_the_objects_of_an_empty_message_cannot_be_computed_either(exchange):
    link = MemoryLink(answering("site-1"), answering("site-2"))
    call, _ = exchange(grid=lambda: link.grid())
    call.roll_call()
    first = set(link.pushed)
    link.pushed.clear()
    call._call(2)
    assert len(link.pushed) > 3
    assert not first & set(link.pushed)


def test_a_message_whose_objects_were_registered_as_others_is_packed_anew(federation):
    link, call, _, _ = federation
    call.ask([call.compose("train", 1, "site-1", ARRAYS)], DEADLINE_S)
    _, message = call.compose("train", 1, "site-1", ARRAYS)
    call._grid.push_messages([message])
    link.poisoned = {i for i in link.pushed if link._stored[i].startswith(b"Array ")}
    assert link.poisoned
    _, again = call.compose("train", 1, "site-2", ARRAYS)
    (message_id,) = call._grid.push_messages([again])
    assert message_id in link.asked


def test_a_request_whose_reply_was_taken_is_deleted_whether_its_site_confirms_it_or_not(federation):
    link, call, _, _ = federation
    asked(call)
    assert set(link.asked) <= set(link.confirmed)


def test_what_nobody_waits_for_any_more_is_deleted_at_the_superlink(federation):
    link, call, _, _ = federation
    link.withheld[2] = 1
    silent = link.answers[3]
    link.answers[3] = lambda request: None
    before = set(link.asked)
    unfinished, missing = asked(call)
    requests = set(link.asked) - before
    assert (unfinished.message, missing.message) == (None, None)
    # In the next two rounds they may still come.
    assert list(call.late(3)) == []
    assert not requests & set(link.confirmed)
    list(call.late(4))
    assert requests <= set(link.confirmed)
    assert len(set(link.confirmed) - set(link.asked)) == 3  # two roll calls, one unfinished reply
    # Its node was handed the request in time, and answers now.
    link.answers[3] = silent
    call._grid._arrivals._sweep_due = 0.0
    call._grid.pull_messages([])
    assert len(set(link.confirmed) - set(link.asked)) == 4


def test_a_score_that_is_not_there_at_the_deadline_is_deleted_at_once(federation):
    link, call, _, _ = federation
    link.answers[2] = lambda request: None
    before = set(link.asked)
    asked(call, "score")
    assert set(link.asked) - before <= set(link.confirmed)
