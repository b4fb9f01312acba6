"""When a roll call closes, in simulated time, whatever silent sites do."""

import json
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest
from flwr.app import ArrayRecord, Error, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nodes_lab import KEYS, Nodes, answering
from rich.console import Console

import fieldmark.server.sites.roll_call
from fgvc_core.errors import RunFailed
from fgvc_core.flower.records import to_content
from fgvc_core.protocol.keys import new_key
from fgvc_core.protocol.messages import Sealed
from fieldmark.server.deployment.following import view_of
from fieldmark.server.ledger_memory import FOLDER, NODES, link_memory
from fieldmark.server.live import LiveView
from fieldmark.server.sites.roll_call import AT_ONCE, GRACE_S, LATEST_S, ONE_MORE_S

ROLL_CALL_S, LONGEST_S, WAIT_S, POLL_S = 60.0, 300.0, 100.0, 1.0
NEVER = None
SITES = ("site-1", "site-2", "site-3")


class Timed(Nodes):
    """Nodes with a clock of their own; each answers so many seconds after it was asked."""

    def __init__(self, *answers):
        super().__init__(*answers)
        self.now, self.after, self.asked = 0.0, {}, {}

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def push_messages(self, messages):
        ids = super().push_messages(messages)
        self.asked.update(dict.fromkeys(ids, self.now))
        return ids

    def pull_messages(self, ids):
        come = []
        for message_id in ids:
            after = self.after.get(self.sent[message_id].metadata.dst_node_id, 0.0)
            if after is not NEVER and self.now >= self.asked[message_id] + after:
                come.append(message_id)
        return super().pull_messages(come)


@pytest.fixture
def third(monkeypatch):
    """A third registered site; a quorum of three is two."""
    monkeypatch.setitem(KEYS, "site-3", new_key())


@pytest.fixture
def called(third, exchange, monkeypatch):
    """The roll call of three sites that answer after so many seconds each."""
    monkeypatch.setattr(fieldmark.server.sites.roll_call, "LONGEST_S", LONGEST_S)

    def call(*after, grid=Timed):
        made, home = exchange(*map(answering, SITES), grid=grid)
        changed = home.settings.model_copy(
            update={"roll_call_s": ROLL_CALL_S, "poll_s": POLL_S, "wait_for_sites_s": WAIT_S}
        )
        made._home = replace(home, settings=changed)
        grid = made._grid
        grid.after = dict(zip(grid.answers, after, strict=True))
        own = SimpleNamespace(monotonic=grid.clock, sleep=grid.sleep)
        monkeypatch.setattr(fieldmark.server.sites.roll_call, "time", own)
        return made, grid

    return call


def test_it_closes_as_soon_as_all_have_answered(called):
    made, grid = called(1.0, 20.0, 3.0)
    assert made.roll_call() == ["site-1", "site-2", "site-3"]
    assert grid.now == pytest.approx(20.0, abs=POLL_S)


@pytest.mark.parametrize("silent", range(3))
def test_one_silent_site_holds_it_up_for_roll_call_s_wherever_it_stands(called, silent):
    made, grid = called(*[NEVER if n == silent else 1.0 for n in range(3)])
    assert len(made.roll_call()) == 2
    assert grid.now == pytest.approx(ROLL_CALL_S, abs=2 * POLL_S)


def test_a_quorum_that_comes_later_is_waited_for_and_then_a_grace_for_the_rest(called):
    made, grid = called(1.0, 100.0, NEVER)
    assert made.roll_call() == ["site-1", "site-2"]
    assert grid.now == pytest.approx(100.0 + GRACE_S, abs=2 * POLL_S)
    made, grid = called(1.0, 100.0, 100.0 + GRACE_S / 2)
    assert made.roll_call() == ["site-1", "site-2", "site-3"]


def test_one_of_three_sites_is_no_federation(called, exchange):
    made, grid = called(1.0, NEVER, NEVER)
    with pytest.raises(RunFailed, match="1 of the 3 sites that were asked take part") as failed:
        made.roll_call()
    assert "needs 2. Missing: site-2: away; site-3: away." in failed.value.what
    assert grid.now == pytest.approx(LONGEST_S + WAIT_S, abs=3 * POLL_S)
    (waiting,) = [e for e in exchange.events() if e["event"] == "waiting_for_sites"]
    assert waiting["present"] == ["site-1"]
    assert waiting["needed"] == 2
    assert waiting["waiting_for"] == {"site-2": "away", "site-3": "away"}
    view = view_of(made._home.run_dir)
    assert view.sites["site-2"].state == "waited for"
    with StringIO() as told:
        LiveView(made._home.recipe, Console(file=told, width=200))(waiting)
        assert "a round needs 2: waiting for site-2 (away), site-3 (away)" in told.getvalue()


def test_a_site_that_has_said_no_is_not_shown_as_waited_for(called):
    made, grid = called(1.0, 1.0, NEVER)
    reason = "A person at the site has declined the run."
    grid.answers[3] = answering("site-2", code="refused-policy", reason=reason)
    with pytest.raises(RunFailed, match="1 of the 3 sites") as failed:
        made.roll_call()
    assert "has declined the run; site-3" in failed.value.what
    view = view_of(made._home.run_dir)
    assert (view.sites["site-2"].state, view.sites["site-3"].state) == (
        "not admitted", "waited for",
    )  # fmt: skip
    assert "declined the run" in view.sites["site-2"].reason


def test_a_quorum_that_is_short_is_waited_for(called):
    made, grid = called(1.0, NEVER, LONGEST_S + WAIT_S / 2)
    assert made.roll_call() == ["site-1", "site-3"]
    assert grid.now == pytest.approx(LONGEST_S + WAIT_S / 2, abs=3 * POLL_S)


def test_a_round_waits_for_a_site_that_went_away_until_a_quorum_is_back(called):
    made, grid = called(1.0, 1.0, NEVER)
    made.roll_call()
    node = made.nodes["site-2"]
    answer = grid.answers.pop(node)
    with pytest.raises(RunFailed, match="site-2: away"):
        made.refresh()
    grid.answers[node] = answer
    assert made.refresh() == ["site-1", "site-2"]


def deciding(site, grid, at):
    """Answers of a site whose people approve the run at a time, or never."""
    waits, agrees = answering(site, code="awaiting-approval"), answering(site)
    return lambda asked: (waits if at is NEVER or grid.now < at else agrees)(asked)


def test_a_run_waits_until_a_quorum_of_people_has_approved_it(called, exchange):
    made, grid = called(1.0, 1.0, 1.0)
    for node, site, at in ((3, "site-2", 7200.0), (4, "site-3", NEVER)):
        grid.answers[node] = deciding(site, grid, at)
    made._home = replace(
        made._home, settings=made._home.settings.model_copy(update={"wait_for_approval_s": 1e5})
    )
    assert made.roll_call() == ["site-1", "site-2"]
    # Asked more and more seldom, at most ten minutes after the yes.
    assert 7200.0 <= grid.now <= 7200.0 + LATEST_S + 2 * POLL_S
    assert len([m for m in grid.sent.values() if m.metadata.dst_node_id == 4]) < 60
    pending = [e["site"] for e in exchange.events() if e["event"] == "awaiting_approval"]
    assert pending == ["site-2", "site-3"]
    waiting = [e for e in exchange.events() if e["event"] == "waiting_for_sites"]
    assert waiting[0]["waiting_for"]["site-2"] == "nobody there has approved the run yet"
    view = view_of(made._home.run_dir)
    assert view.sites["site-3"].state == "awaits approval"


def test_a_yes_during_the_run_counts_from_the_next_round_on(called):
    made, grid = called(1.0, 1.0, 1.0)
    grid.answers[4] = deciding("site-3", grid, 500.0)
    assert made.roll_call() == ["site-1", "site-2"]
    assert made.refresh() == ["site-1", "site-2"]
    grid.now = 1200.0
    made.refresh()
    grid.now += 2.0
    assert made.refresh() == ["site-1", "site-2", "site-3"]


def test_a_run_that_too_few_approve_ends_after_the_time_for_it(called):
    made, grid = called(1.0, 1.0, 1.0)
    for node, site in ((2, "site-1"), (3, "site-2"), (4, "site-3")):
        grid.answers[node] = deciding(site, grid, NEVER)
    made._home = replace(
        made._home, settings=made._home.settings.model_copy(update={"wait_for_approval_s": 1000.0})
    )
    with pytest.raises(RunFailed, match="0 of the 3 sites that were asked take part") as failed:
        made.roll_call()
    assert "site-1: nobody there has approved the run yet" in failed.value.what
    assert 1000.0 <= grid.now <= 1000.0 + ROLL_CALL_S


def test_a_no_by_the_sites_policy_ends_the_wait_for_it(called):
    made, grid = called(1.0, 1.0, 1.0)
    refused = answering("site-2", code="refused-policy", reason="policy.expires")
    for node in (3, 4):
        first = deciding(f"site-{node - 1}", grid, NEVER)
        later = refused if node == 3 else answering("site-3", code="refused-policy", reason="no")
        grid.answers[node] = lambda asked, f=first, n=later: (f if grid.now < 50 else n)(asked)
    with pytest.raises(RunFailed, match=r"site-2: policy\.expires; site-3: no"):
        made.roll_call()
    assert made.undecided == {}


def test_who_answers_after_it_is_in_from_the_next_round_on(called):
    made, grid = called(1.0, 1.0, ROLL_CALL_S + 30.0)
    assert made.roll_call() == ["site-1", "site-2"]
    assert made.refresh() == ["site-1", "site-2"]
    grid.now += 40.0
    assert made.refresh() == ["site-1", "site-2", "site-3"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.tuples(*[st.one_of(st.none(), st.floats(0.0, 1000.0))] * 3))
def test_it_closes_in_time_and_leaves_out_nobody_who_answered_before(called, after):
    made, grid = called(*after)
    came = sorted(a for a in after if a is not NEVER)
    quorum = came[1] if len(came) > 1 else LONGEST_S
    latest = min(max(ROLL_CALL_S, quorum + GRACE_S), LONGEST_S) + 3 * POLL_S
    try:
        made.roll_call()
    except RunFailed:
        latest += WAIT_S
        assert sum(a <= LONGEST_S for a in came) < 2
    if len(made.nodes) > 1 and quorum > LONGEST_S:
        latest = quorum + 3 * POLL_S
    assert grid.now <= latest
    answered = zip(SITES, after, strict=True)
    before = {site for site, a in answered if a is not NEVER and a < grid.now - POLL_S}
    assert before <= set(made.nodes)


def test_who_was_waited_for_is_named_in_the_events_and_in_the_status(called, exchange, tmp_path):
    (tmp_path / "federation" / FOLDER).mkdir(parents=True)
    link_memory(tmp_path, tmp_path / "federation")
    (tmp_path / NODES).write_text(json.dumps({"2": "site-1", "3": "site-2", "4": "site-3"}))
    made, _ = called(1.0, NEVER, 1.0)
    made.roll_call()
    closed = exchange.events()[-1]
    assert (closed["event"], closed["waited_for"]) == ("roll_call_closed", ["site-2"])
    assert closed["admitted"] == 2
    assert closed["seconds"] == pytest.approx(ROLL_CALL_S, abs=2 * POLL_S)
    view = view_of(tmp_path)
    assert view.sites["site-2"].state == "no answer"
    assert view.sites["site-1"].state == "arrived"
    assert "registered for site 'site-2'" in view.refusals[-1]["reason"]
    # The name is only what the key is registered for: nobody has proved to be it.
    assert view.refusals[-1]["site"] is None


def test_nobody_is_named_where_all_have_answered(called, exchange):
    made, _ = called(1.0, 2.0, 3.0)
    made.roll_call()
    assert {e["event"] for e in exchange.events()} == {"roll_call"}


class Failing(Timed):
    """Some nodes answer with an error, as where a site gives no signed answer, or are away."""

    failing, away, forgotten = (), (), ()

    def get_node_ids(self):
        return [node for node in super().get_node_ids() if node not in self.away]

    def forget(self, message_id):
        self.forgotten += (message_id,)

    def pull_messages(self, ids):
        ids = [i for i in ids if self.sent[i].metadata.dst_node_id not in self.away]
        bad = [i for i in ids if self.sent[i].metadata.dst_node_id in self.failing]
        errors = [Message(Error(code=2, reason=""), reply_to=self.sent[i]) for i in bad]
        return errors + super().pull_messages([i for i in ids if i not in bad])


def test_a_node_that_fails_without_end_is_asked_and_recorded_at_a_bounded_rate(called, exchange):
    made, grid = called(1.0, NEVER, 1.0, grid=Failing)
    grid.failing = (4,)
    with pytest.raises(RunFailed):
        made.roll_call()
    asked = [m for m in grid.sent.values() if m.metadata.dst_node_id == 4]
    allowed = AT_ONCE + grid.now / ONE_MORE_S
    assert AT_ONCE <= len(asked) <= allowed
    assert len(exchange.events()) <= allowed + 6


def test_a_site_that_comes_and_goes_is_asked_and_recorded_at_a_bounded_rate(called, exchange):
    made, grid = called(1.0, 1.0, NEVER, grid=Failing)
    made.roll_call()
    node, before = made.nodes["site-2"], len(exchange.events())
    for second in range(600):
        grid.away = (node,) if second % 2 else ()
        grid.now += 1.0
        made._look()
    calls = [m for m in grid.sent.values() if m.metadata.dst_node_id == node]
    assert 10 <= len(calls) <= AT_ONCE + 1 + 600 / ONE_MORE_S
    assert len(exchange.events()) - before <= 3 * len(calls)


def test_a_call_that_its_node_has_not_answered_is_given_up_once_it_is_away(called):
    made, grid = called(1.0, 1.0, NEVER, grid=Failing)
    made.roll_call()
    ((message_id, _),) = made._calls.values()
    grid.away = (4,)
    made.refresh()
    assert grid.forgotten == (message_id,)


def test_an_admitted_site_that_awaits_approval_again_holds_nothing_up_for_longer(called):
    made, grid = called(1.0, 1.0, NEVER)
    made._home = replace(
        made._home, settings=made._home.settings.model_copy(update={"wait_for_approval_s": 1e5})
    )
    made.roll_call()
    node = made.nodes["site-2"]
    del grid.answers[node]
    made._look()
    grid.answers[node] = answering("site-2", code="awaiting-approval")
    began = grid.now
    with pytest.raises(RunFailed, match="site-2: nobody there has approved the run yet"):
        made.refresh()
    assert grid.now - began <= WAIT_S + 3 * POLL_S


def test_who_answers_from_a_second_node_that_nobody_has_approved_changes_nothing(called, exchange):
    made, grid = called(1.0, 1.0, 1.0)
    # A registered site lends its node to another.
    grid.answers[4] = answering("site-2", code="awaiting-approval")
    assert made.roll_call() == ["site-1", "site-2"]
    assert made.undecided == {}
    assert not [e for e in exchange.events() if e["event"] == "awaiting_approval"]


def test_a_run_that_waits_says_of_each_site_why_it_takes_no_part(called, exchange):
    made, grid = called(1.0, 1.0, NEVER)
    grid.answers[3] = answering("site-2", code_digest="ab" * 32)
    with pytest.raises(RunFailed, match="site-2: Site 'site-2' runs Fieldmark") as failed:
        made.roll_call()
    assert "site-3: away" in failed.value.what


def test_only_hex_digits_are_proposed_for_a_setting_that_a_person_copies(called, exchange):
    made, grid = called(1.0, 1.0, 1.0)
    grid.answers[3] = answering("site-2", code_digest="'] \n[gateway]\n")
    made.roll_call()
    (refused,) = [e["reason"] for e in exchange.events() if not e["accepted"]]
    assert refused.endswith("Install the same there.")


def test_a_registered_site_that_a_run_does_not_ask_is_never_called(called, tmp_path):
    (tmp_path / "federation" / FOLDER).mkdir(parents=True)
    link_memory(tmp_path, tmp_path / "federation")
    (tmp_path / NODES).write_text(json.dumps({"2": "site-1", "3": "site-2", "4": "another"}))
    made, grid = called(1.0, 1.0, 1.0)
    assert made.roll_call() == ["site-1", "site-2"]
    made.refresh()
    assert {m.metadata.dst_node_id for m in grid.sent.values()} == {2, 3}
    assert view_of(tmp_path).refusals == []


def test_an_unsigned_answer_is_named_by_the_site_that_its_key_is_registered_for(
    called, exchange, tmp_path
):
    (tmp_path / "federation" / FOLDER).mkdir(parents=True)
    link_memory(tmp_path, tmp_path / "federation")
    (tmp_path / NODES).write_text(json.dumps({"2": "site-1", "3": "site-2", "4": "site-3"}))
    made, grid = called(1.0, 1.0, 1.0)

    def unsigned(request):
        return to_content(Sealed("", bytes(64)), ArrayRecord())

    grid.answers[4] = unsigned
    assert made.roll_call() == ["site-1", "site-2"]
    site = view_of(tmp_path).sites["site-3"]
    assert site.state == "not admitted"
    assert "a full disk, for instance" in site.reason
    (refused,) = [e for e in exchange.events() if e.get("accepted") is False]
    with StringIO() as told:
        LiveView(made._home.recipe, Console(file=told, width=200))(refused)
        assert told.getvalue().startswith("the node of site-3 was not admitted: The reply is not")


def test_a_site_that_could_not_sign_is_asked_again_and_takes_part_once_it_can(called, tmp_path):
    (tmp_path / "federation" / FOLDER).mkdir(parents=True)
    link_memory(tmp_path, tmp_path / "federation")
    (tmp_path / NODES).write_text(json.dumps({"2": "site-1", "3": "site-2", "4": "site-3"}))
    made, grid = called(1.0, 1.0, 1.0)
    well = grid.answers[4]
    grid.answers[4] = lambda request: to_content(Sealed("", bytes(64)), ArrayRecord())
    assert made.roll_call() == ["site-1", "site-2"]
    asked = len(grid.sent)
    grid.now += ONE_MORE_S / 2
    assert made.refresh() == ["site-1", "site-2"]
    assert len(grid.sent) == asked
    grid.now += ONE_MORE_S
    grid.answers[4] = well
    made.refresh()
    grid.now += 2.0
    assert made.refresh() == ["site-1", "site-2", "site-3"]
    assert made.reasons == {}


def test_a_run_waits_for_sites_that_could_not_sign(called, tmp_path):
    (tmp_path / "federation" / FOLDER).mkdir(parents=True)
    link_memory(tmp_path, tmp_path / "federation")
    (tmp_path / NODES).write_text(json.dumps({"2": "site-1", "3": "site-2", "4": "site-3"}))
    made, grid = called(1.0, 1.0, 1.0)
    for node in (3, 4):
        grid.answers[node] = lambda request: to_content(Sealed("", bytes(64)), ArrayRecord())
    with pytest.raises(RunFailed, match="Missing: site-2: The reply is not signed"):
        made.roll_call()
    assert grid.now >= WAIT_S


def test_one_site_is_told_in_the_singular():
    from fieldmark.server.sites.membership import refused_by_all

    assert refused_by_all({"a": "no."}).what == "1 site refuses by its own policy: no."
    assert refused_by_all({"a": "no.", "b": "no."}).what.startswith("2 sites refuse by their own")
