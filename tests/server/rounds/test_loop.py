"""Rounds against sites that misbehave, without worker processes."""

import json

import numpy as np
import pytest
from flwr.app import Message

from fgvc_core.errors import ConfigurationError, PolicyRefusal, RunFailed
from fgvc_core.flower.internals import enter_run, give_id
from fgvc_core.flower.records import to_array_record, to_content
from fgvc_core.protocol.code import code_digest
from fgvc_core.protocol.keys import new_key, public_text, write_private
from fgvc_core.protocol.messages import Reply, Request, Scores, seal
from fgvc_core.recipe import parse_recipe
from fgvc_core.wire.arrays import pack_all
from fieldmark.server.home import CoordinatorHome, ServerSettings, write_home
from fieldmark.server.rounds.cohort import draw_cohort
from fieldmark.server.rounds.loop import Rounds
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState
from fieldmark.server.run_log.events import EventLog

START = {"w": np.zeros(4, np.float32)}
KEYS = {f"site-{n}": new_key() for n in (1, 2, 3)}
STRANGER = new_key()


class Puppets:
    """A grid whose nodes add 1 to what they receive, unless a site's trick says otherwise."""

    def __init__(self, tricks=None, stranger=False):
        self.tricks = tricks or {}
        self.nodes = dict(enumerate(KEYS, start=2)) | ({9: "stranger"} if stranger else {})
        self.waiting = {}
        enter_run(1)

    def get_node_ids(self):
        return list(self.nodes)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            ids.append(give_id(message))
            self.waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids):
        replies = [self.reply(self.waiting.pop(i)) for i in message_ids if i in self.waiting]
        return [r for r in replies if r is not None]

    def reply(self, message):
        site = self.nodes[message.metadata.dst_node_id]
        key = KEYS.get(site, STRANGER)
        self.asked = getattr(self, "asked", [])
        body = Request.parse(message.content.config_records["envelope"]["body"])
        self.asked.append(body)
        trick = self.tricks.get(site, lambda round_, values: values)
        values, tensors, right = {}, {}, 4 + body.round
        if body.kind == "train":
            received = message.content.array_records["tensors"]["w"].numpy()
            values = trick(body.round, {"values": received + 1})
            if values is None:
                return None
            tensors, right = {"w": values["values"]}, values.get("correct", right)
        if body.kind == "score":
            values = trick(body.round, {"values": START["w"]}) or {}
            right = values.get("correct", right)
        elif body.kind == "score":
            right = (trick(body.round + 1, {}) or {}).get("correct", right)
        packed = pack_all(tensors)
        scores = Scores(examples=10, correct=min(right, 10), loss_sum=1.0, macro_f1=0.5)
        fields = body.model_dump(include={"kind", "run", "round", "nonce", "recipe_digest"})
        reply = Reply(
            **fields, site=site, code="ok", examples=10, loss=1.0,
            scores=None if body.kind == "roll_call" or values.get("silent") else scores,
            public_key=public_text(key.public_key()) if body.kind == "roll_call" else "",
            code_digest=code_digest(),
            tensors={n: t.digest() for n, t in packed.items()},
        )  # fmt: skip
        return Message(to_content(seal(key, reply), to_array_record(packed)), reply_to=message)


def run(tmp_path, puppets, *overrides, state=None):
    recipe = parse_recipe("", ["federation.rounds=3", "federation.deadline_s=0.3", *overrides])
    (tmp_path / "coordinator").mkdir()
    write_private(new_key(), tmp_path / "coordinator" / "key")
    sites = {name: public_text(key.public_key()) for name, key in KEYS.items()}
    settings = ServerSettings(cache=str(tmp_path), poll_s=0.01)
    write_home(tmp_path, recipe, ("a", "b"), sites, settings)
    home = CoordinatorHome.open(tmp_path)
    events = EventLog(tmp_path / "events.jsonl")
    rounds = Rounds(puppets, home, state or RunState(run="run-1"), START, None, events)
    try:
        return rounds.run(), rounds, home
    finally:
        rounds.events = [
            json.loads(x) for x in (tmp_path / "events.jsonl").read_text().splitlines()
        ]
        run.last = rounds


def last(home):
    return Checkpoints(home.run_dir, home.recipe, home.class_names).read("last")


def test_each_round_starts_from_the_last_ones_mean(tmp_path):
    reason, _, home = run(tmp_path, Puppets())
    tensors, state = last(home)
    assert (reason, state.round) == ("rounds", 3)
    assert tensors["w"].tolist() == [3.0] * 4


def test_scores_in_a_reply_are_booked_to_the_model_that_was_sent(tmp_path):
    _, rounds, _ = run(tmp_path, Puppets())
    # Round r's replies say (4 + r) of 10 right, and they scored model r - 1; the closing
    # evaluation (round 3 again) scores model 3.
    assert [h["val_top1"] for h in rounds.state.history] == [0.6, 0.7, 0.7]
    assert rounds.state.best_round == 2


@pytest.mark.parametrize(
    ("trick", "said"),
    [
        (lambda r, v: {"values": v.get("values", 0) * np.float32(np.nan)}, "not finite"),
        (lambda r, v: {"values": np.ones(5, np.float32)}, "expected"),
        (lambda r, v: None, "No reply within"),
    ],
    ids=["NaN", "misshapen", "silent"],
)
def test_one_bad_site_is_named_and_the_round_goes_on(tmp_path, trick, said):
    _, rounds, home = run(tmp_path, Puppets({"site-2": trick}), "federation.rounds=2")
    assert last(home)[0]["w"].tolist() == [2.0] * 4
    refused = [e for e in rounds.events if e.get("accepted") is False]
    assert {e["site"] for e in refused} == {"site-2"}
    assert len(refused) == 2
    assert all(said in e["reason"] for e in refused)
    assert rounds.state.sites["site-2"]["refused"] == 2


def test_rounds_without_a_quorum_leave_the_model_alone_and_end_the_run(tmp_path):
    silent = lambda r, v: None if r > 1 else v  # noqa: E731
    puppets = Puppets({"site-1": silent, "site-2": silent})
    with pytest.raises(RunFailed, match="1 sound replies of 2 needed") as caught:
        run(tmp_path, puppets, "federation.deadline_s=0.05")
    assert caught.value.exit_code == 6
    tensors, state = last(CoordinatorHome.open(tmp_path))
    assert (state.round, tensors["w"].tolist()) == (1, [1.0] * 4)
    assert sum(e["event"] == "round_void" for e in run.last.events) == 3


def test_patience_counts_rounds_without_a_better_score(tmp_path):
    worse = lambda r, v: {**v, "correct": 5 if r == 2 else 1}  # noqa: E731
    puppets = Puppets(dict.fromkeys(KEYS, worse))
    reason, rounds, _ = run(tmp_path, puppets, "federation.rounds=9", "federation.patience=2")
    assert (reason, rounds.state.round, rounds.state.best_round) == ("patience", 4, 1)


@pytest.mark.parametrize(
    ("done", "since", "reason"), [(4, 2, "patience"), (9, 0, "rounds"), (4, 1, "patience")]
)
def test_a_run_resumed_after_its_last_round_adds_none_that_it_would_not_have_had(
    tmp_path, done, since, reason
):
    worse = lambda r, v: {**v, "correct": 1}  # noqa: E731
    state = RunState(run="run-1", round=done, best_round=1, best_score=[0.9, -0.1],
                     since_best=since, history=[{"round": n + 1} for n in range(done)])  # fmt: skip
    puppets = Puppets(dict.fromkeys(KEYS, worse))
    settings = ("federation.rounds=9", "federation.patience=2")
    got, rounds, _ = run(tmp_path, puppets, *settings, state=state)
    assert (got, rounds.state.round) == (reason, done + (since == 1))


class Refusing(Puppets):
    """Some sites refuse by their policy whatever a round asks."""

    def __init__(self, *refuse):
        super().__init__()
        self.refuse = refuse

    def reply(self, message):
        site = self.nodes[message.metadata.dst_node_id]
        body = Request.parse(message.content.config_records["envelope"]["body"])
        if site not in self.refuse or body.kind == "roll_call":
            return super().reply(message)
        fields = body.model_dump(include={"kind", "run", "round", "nonce", "recipe_digest"})
        reply = Reply(**fields, site=site, code="refused-policy", reason="policy.epsilon_cap")
        sealed = seal(KEYS[site], reply)
        return Message(to_content(sealed, None), reply_to=message)


def test_one_site_that_refuses_ends_no_run_also_where_it_is_asked_alone(tmp_path):
    alone = ("federation.fraction=0.3", "federation.rounds=6")
    reason, rounds, _ = run(tmp_path, Refusing("site-2"), *alone)
    assert reason == "rounds"
    assert any(e["event"] == "round_void" for e in rounds.events)


def test_one_silent_site_ends_no_run_also_where_it_is_asked_alone(tmp_path):
    alone = ("federation.fraction=0.3", "federation.rounds=6", "federation.deadline_s=0.05")
    reason, rounds, _ = run(tmp_path, Puppets({"site-2": lambda r, v: None}), *alone)
    assert reason == "rounds"
    cohorts = [(e["round"], e["cohort"]) for e in rounds.events if e["event"] == "round_started"]
    assert len({(number, *cohort) for number, cohort in cohorts}) == len(cohorts) > 6


def test_a_run_ends_once_so_many_refuse_that_no_quorum_is_left(tmp_path):
    with pytest.raises(PolicyRefusal, match="3 sites refuse by their own policy") as caught:
        run(tmp_path, Refusing(*KEYS), "federation.rounds=6")
    assert caught.value.exit_code == 4


def test_one_void_round_is_made_up_for_and_forgotten(tmp_path):
    asked = []

    def flaky(round_, values):
        asked.append(round_)
        return None if len(asked) in (3, 4) else values

    puppets = Puppets({"site-1": flaky, "site-2": flaky})
    _, rounds, home = run(tmp_path, puppets, "federation.deadline_s=0.05")
    assert last(home)[0]["w"].tolist() == [3.0] * 4
    assert [e["round"] for e in rounds.events if e["event"] == "round_void"] == [2]
    assert rounds.state.void_rounds == 0
    # The third site answered four times, once to the void round.
    figures = {(s["rounds"], s["contributed"]) for s in rounds.state.sites.values()}
    assert figures == {(3, 3)}


def test_a_run_without_sites_scores_keeps_its_latest_model(tmp_path):
    silent = lambda r, v: {**v, "silent": True}  # noqa: E731
    _, rounds, home = run(tmp_path, Puppets(dict.fromkeys(KEYS, silent)), "federation.patience=1")
    assert (rounds.state.round, rounds.state.best_round) == (3, 3)
    best, _ = Checkpoints(home.run_dir, home.recipe, home.class_names).read("best")
    assert best["w"].tolist() == [3.0] * 4


def test_a_stranger_in_the_roll_call_is_not_admitted(tmp_path):
    _, rounds, _ = run(tmp_path, Puppets(stranger=True), "federation.rounds=1")
    calls = [e for e in rounds.events if e["event"] == "roll_call"]
    assert sum(e["accepted"] for e in calls) == 3
    (stranger,) = [e for e in calls if not e["accepted"]]
    assert "not registered" in stranger["reason"]
    assert set(rounds.state.sites) == set(KEYS)


def test_cohorts_are_drawn_over_names_by_the_rounds_own_seed():
    names = [f"site-{n}" for n in range(20)]
    one = draw_cohort(names, 0.25, 7, 3)
    assert one == draw_cohort(names[::-1], 0.25, 7, 3) == sorted(one)
    assert len(one) == 5
    assert one != draw_cohort(names, 0.25, 7, 4)
    assert draw_cohort(names, 1.0, 7, 3) == sorted(names)
    assert len(draw_cohort(names, 0.001, 7, 3)) == 1


def test_a_site_is_told_why_it_was_refused_and_set_aside_in_the_end(tmp_path):
    nan = lambda r, v: {**v, "values": v.get("values", 0) * np.float32(np.nan)}  # noqa: E731
    puppets = Puppets({"site-2": nan})
    sets = ("federation.rounds=5", "federation.set_aside_after=2")
    _, rounds, _ = run(tmp_path, puppets, *sets)
    asked = [b for b in puppets.asked if b.site == "site-2"]
    assert [b.round for b in asked] == [1, 2]
    assert asked[0].notice == ""
    assert "not finite" in asked[1].notice
    (aside,) = [e for e in rounds.events if e["event"] == "site_set_aside"]
    assert (aside["site"], aside["round"], aside["refused_in_row"]) == ("site-2", 2, 2)
    assert "not finite" in aside["reason"]
    assert all(b.notice == "" for b in puppets.asked if b.site != "site-2")


def test_silence_is_no_reason_to_set_a_site_aside(tmp_path):
    silent = lambda r, v: None  # noqa: E731
    sets = ("federation.rounds=4", "federation.set_aside_after=1", "federation.deadline_s=0.05")
    _, rounds, _ = run(tmp_path, Puppets({"site-2": silent}), *sets)
    assert [e for e in rounds.events if e["event"] == "site_set_aside"] == []


def test_a_run_whose_every_site_is_set_aside_fails(tmp_path):
    def bad(round_, values):
        return values if round_ < 2 else {**values, "values": np.full(4, np.nan, np.float32)}

    with pytest.raises(RunFailed, match="set aside"):
        run(tmp_path, Puppets(dict.fromkeys(KEYS, bad)), "federation.set_aside_after=1")


def test_a_reply_that_comes_late_is_recorded_and_counts_for_nothing(tmp_path):
    class Slow(Puppets):
        ready: dict = {}  # noqa: RUF012

        def push_messages(self, messages):
            ids = super().push_messages(messages)
            self.ready = self.ready | {i: self.reply(self.waiting[i]) for i in ids}
            return ids

        def is_late(self, message_id):
            body = Request.parse(
                self.waiting[message_id].content.config_records["envelope"]["body"]
            )
            begun = any(b.round == 2 for b in self.asked)
            return (body.kind, body.site, body.round) == ("train", "site-2", 1) and not begun

        def pull_messages(self, message_ids):
            there = [i for i in message_ids if i in self.ready and not self.is_late(i)]
            return [self.ready.pop(i) for i in there]

    sets = ("federation.rounds=3", "federation.deadline_s=0.05")
    _, rounds, home = run(tmp_path, Slow(), *sets)
    assert last(home)[0]["w"].tolist() == [3.0] * 4
    late = [e for e in rounds.events if e["event"] == "late_reply"]
    assert [(e["site"], e["round"], e["accepted"]) for e in late] == [("site-2", 1, False)]
    assert "after round 1 was closed" in late[0]["reason"]


@pytest.mark.parametrize(("patterns", "said"), [('["x.*"]', "no tensor"), ('["*"]', "nothing")])
def test_patterns_of_local_tensors_that_cannot_be_meant_are_refused(tmp_path, patterns, said):
    with pytest.raises(ConfigurationError, match=said):
        run(tmp_path, Puppets(), f"federation.local={patterns}")
