"""The gate under differential privacy: what it charges, what it refuses, and in which order."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from fgvc_core.errors import DataError, PeerError, PolicyRefusal
from fgvc_core.privacy.accountant import PrivacyEvent, epsilon_of_plan, merge, read_events
from fgvc_core.privacy.planning import plan_for
from fgvc_core.protocol.messages import Reply
from fieldmark.client.privacy import gate as gates
from fieldmark.client.privacy.chain import Chain, read_chain
from fieldmark.client.privacy.gate import Gate
from fieldmark.client.privacy.outbox import Outbox, Payload, request_digest
from fieldmark.client.privacy.spending import plans_of
from fieldmark.client.site import Site

from ..protected_sites import (
    Work,
    announce,
    answer,
    kinds,
    ledger_of,
    make_site,
    opened,
    request,
    steps,
    sums,
    unprotected,
    with_data,
    with_policy,
)

STEPS = steps()


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path)


@pytest.fixture
def announced(site):
    announce(site, STEPS)
    return site


def spent(site):
    return ledger_of(site).total(1e-5)[0]


def refused(site, body, *, kind=PolicyRefusal, match, recipe=STEPS, work=None):
    """The gate refuses, charges nothing, and never calls the work."""
    before, work = spent(site), work or Work(body)
    with pytest.raises(kind, match=match) as caught:
        answer(site, recipe, body, work)
    assert spent(site) == before
    assert work.calls == 0
    return caught.value


def test_cost_then_work_then_payload_then_entry_then_signature(announced, monkeypatch):
    site, body, seen = announced, request(STEPS, "train"), []

    def work():
        seen.append(("work", kinds(site)[-1], Outbox(site.home).find(request_digest(body))))
        return Work(body)()

    sign = gates.seal

    def signing(key, reply):
        stored = Outbox(site.home).find(request_digest(body))
        seen.append(("seal", kinds(site)[-1], stored is not None))
        return sign(key, reply)

    monkeypatch.setattr(gates, "seal", signing)
    reply = opened(site, answer(site, STEPS, body, work))
    assert seen == [("work", "reserved", None), ("seal", "sent", True)]
    assert reply.ledger_length == len(ledger_of(site).entries())
    assert reply.ledger_head == ledger_of(site).head()[1]


def test_a_reply_states_what_was_spent_so_that_it_can_be_computed_again(announced):
    totals, planned = [], plan_for(STEPS.privacy, 3)
    for round_ in (1, 2, 3):
        body = request(STEPS, "train", round_=round_)
        reply = opened(announced, answer(announced, STEPS, body))
        statement = reply.privacy
        events = read_events(statement.events)
        # The whole plan's, from the first release on: the end may be chosen by what was seen.
        assert statement.epsilon == epsilon_of_plan(events, statement.delta)
        assert statement.how == "PLD of one plan, unfinished"
        assert merge(events) == merge(planned)
        assert statement.how_total == "Renyi odometer"
        totals.append(statement.epsilon_total)
    assert 0 < totals[0] < totals[1] < totals[2]
    assert statement.unit == "image"
    # However many rounds, equal events are one line of the statement.
    assert sorted((e.purpose, e.count) for e in events) == [("scores", 1), ("step", 6)]


def test_what_a_torn_line_may_have_cost_is_in_the_statement(announced):
    with (announced.home / "ledger.jsonl").open("ab") as file:
        file.write(b'{"n": 2, "time')
    statement = opened(announced, answer(announced, STEPS, request(STEPS, "train"))).privacy
    events = {e.purpose: e.count for e in read_events(statement.events)}
    # All that was announced, and beside it what the line may have reserved.
    assert events == {"step": 8, "scores": 2}
    assert statement.epsilon == epsilon_of_plan(read_events(statement.events), 1e-5)


def test_an_announced_run_has_cost_nothing_yet_and_twice_is_once(announced):
    announce(announced, STEPS)
    assert kinds(announced) == ["founded", "announced"]
    assert spent(announced) == 0.0


def test_no_run_changes_its_plan(announced):
    other = steps("train.lr=0.5")
    with pytest.raises(PolicyRefusal, match="announced before with another plan"):
        announce(announced, other)
    refused(announced, request(other, "train"), kind=PeerError, match="never announced")
    refused(announced, request(STEPS, "train", "run-2"), kind=PeerError, match="never announced")


def test_a_round_is_answered_for_one_request(announced):
    answer(announced, STEPS, request(STEPS, "train", tensors={"w": "0" * 64}))
    for change in ({"tensors": {"w": "1" * 64}}, {"proximal_mu": 1.0}, {"tensors": {}}):
        refused(announced, request(STEPS, "train", **change), match="for another request")


def test_no_more_is_released_than_was_announced(announced):
    for round_ in (1, 2, 7):
        answer(announced, STEPS, request(STEPS, "train", round_=round_))
    refused(announced, request(STEPS, "train", round_=3), match="no 'step' left")
    answer(announced, STEPS, request(STEPS, "score", round_=3))
    refused(announced, request(STEPS, "score", round_=4), match="no 'scores' left")


def test_less_noise_than_was_announced_is_refused(announced):
    (step,) = (e for e in plan_for(STEPS.privacy, 3) if e.purpose == "step")
    for cheaper in (
        replace(step, noise_multiplier=step.noise_multiplier / 2, count=2),
        replace(step, sampling_rate=0.9, count=2),
        replace(step, count=99),
    ):
        with pytest.raises(PolicyRefusal, match="no 'step' left"):
            answer(announced, STEPS, request(STEPS, "train"), event=cheaper)
    assert spent(announced) == 0.0


def test_a_request_that_was_charged_is_not_worked_on_with_less_noise_later(tmp_path):
    """The policy's own noise may change between a crash and the second try."""
    site, body = make_site(tmp_path), request(STEPS, "train")
    announce(site, STEPS)
    with pytest.raises(ZeroDivisionError):
        answer(site, STEPS, body, work=lambda: 1 / 0)
    (step,) = (e for e in plan_for(STEPS.privacy, 3) if e.purpose == "step")
    with pytest.raises(PolicyRefusal, match="charged under other terms"):
        answer(site, STEPS, body, event=replace(step, noise_multiplier=0.5, count=2))
    assert answer(site, STEPS, body).tensors


def test_the_cap_stops_a_run_before_it_begins(tmp_path):
    site = make_site(tmp_path, epsilon_cap=5.0)
    assert announce(site, STEPS) is not None
    for round_ in (1, 2, 3):
        answer(site, STEPS, request(STEPS, "train", round_=round_))
    with pytest.raises(PolicyRefusal, match=r"policy\.epsilon_cap = 5 at delta 1e-05") as caught:
        announce(site, STEPS, "run-2")
    assert caught.value.exit_code == 4
    assert [plan.run for plan in ledger_of(site).plans()] == ["run-1"]
    # What was announced goes on.
    answer(site, STEPS, request(STEPS, "score", round_=3))
    assert spent(site) <= 5.0


def test_a_cap_that_is_lowered_stops_a_run_in_the_middle(announced):
    answer(announced, STEPS, request(STEPS, "train"))
    lowered = with_policy(announced, privacy="required", epsilon_cap=spent(announced) * 1.01)
    refused(lowered, request(STEPS, "train", round_=2), match=r"policy\.epsilon_cap")
    # What was charged and stored is still given to whoever asks again.
    assert answer(lowered, STEPS, request(STEPS, "train")).tensors


def test_two_runs_at_once_do_not_pass_the_cap_together(tmp_path):
    site = make_site(tmp_path, epsilon_cap=5.0)
    for run in ("run-1", "run-2"):
        announce(site, STEPS, run)
    stopped = []
    for round_ in (1, 2, 3):
        for run in ("run-1", "run-2"):
            try:
                answer(site, STEPS, request(STEPS, "train", run, round_))
            except PolicyRefusal as error:
                stopped.append("policy.epsilon_cap" in error.what)
    assert stopped
    assert all(stopped)
    assert 0 < spent(site) <= 5.0


def test_the_ledger_stays_with_its_data(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    site = with_data(make_site(tmp_path), path=str(tmp_path / "a"))
    ledger_of(site).note("refused", {"run": "x"})
    # Nothing was announced yet: it may begin over other data.
    site = with_data(site, path=str(tmp_path / "b"))
    announce(site, STEPS)
    assert kinds(site) == ["founded", "refused", "founded", "announced"]
    moved = with_data(site, path=str(tmp_path / "a"))
    with pytest.raises(PolicyRefusal, match="belongs to other data"):
        announce(moved, STEPS, "run-2")
    refused(moved, request(STEPS, "train"), match="belongs to other data")
    answer(with_data(moved, path=str(tmp_path / "b")), STEPS, request(STEPS, "train"))


def test_other_rows_of_a_shared_set_are_other_data(announced):
    other = replace(announced, rows=np.array([3, 1]))
    refused(other, request(STEPS, "train"), match="belongs to other data")
    same = (replace(announced, rows=np.array(rows)).data_binding for rows in ([1, 3], [3, 1]))
    assert len({other.data_binding, *same}) == 1


def test_a_link_to_the_data_is_the_data(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    site = make_site(tmp_path)
    paths = (str(tmp_path / "data"), str(tmp_path / "link"), "~/data")
    assert len({with_data(site, path=path).data_binding for path in paths}) == 1


def test_a_ledger_that_has_charged_one_unit_charges_no_other(announced):
    subjects = steps("privacy.unit=subject")
    # Announced, nothing released: the other unit may still be chosen.
    announce(announced, subjects, "run-2")
    answer(announced, STEPS, request(STEPS, "train"))
    refused(
        announced,
        request(subjects, "train", "run-2"),
        recipe=subjects,
        match="has protected 'image' so far",
    )
    with pytest.raises(PolicyRefusal, match=r"privacy\.unit = 'subject'"):
        announce(announced, subjects, "run-3")


def test_no_public_number_of_units_no_part(tmp_path):
    site = make_site(tmp_path, units=0)
    with pytest.raises(PolicyRefusal, match=r"data\.units in site\.toml is 0"):
        announce(site, STEPS)


@pytest.mark.parametrize("when", ["roll call", "round", "round without cost"])
def test_a_head_that_the_coordinator_has_seen_and_the_ledger_lacks_is_refused(announced, when):
    known = ledger_of(announced).head()[1]
    if when == "roll call":
        announce(announced, STEPS, "run-2", known_head=known)
        with pytest.raises(PolicyRefusal, match="not in it"):
            announce(announced, STEPS, "run-3", known_head="f" * 64)
        return
    body = request(STEPS, "train", known_head="f" * 64)
    refused(announced, body, match="The coordinator has seen an entry")
    if when == "round":
        assert answer(announced, STEPS, body.model_copy(update={"known_head": known}))


def test_a_restored_home_is_noticed_by_the_coordinators_next_request(announced):
    site = announced
    old = {name: (site.home / name).read_bytes() for name in ("ledger.jsonl", "ledger.head")}
    reply = opened(site, answer(site, STEPS, request(STEPS, "train")))
    moved = replace(site, home=site.home.with_name("moved"))
    site.home.rename(moved.home)
    for name, data in old.items():
        (moved.home / name).write_bytes(data)
    shutil.rmtree(moved.home / "outbox")
    assert spent(moved) == 0.0
    body = request(STEPS, "train", round_=2, known_head=reply.ledger_head)
    refused(moved, body, match="not in it")


@pytest.mark.parametrize("sent", [True, False])
def test_a_stored_reply_that_is_gone_is_computed_again_only_if_it_never_left(announced, sent):
    body = request(STEPS, "train")
    work = Work(body)
    if sent:
        answer(announced, STEPS, body, work)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Outbox, "store", lambda *_: (_ for _ in ()).throw(OSError("full")))
            with pytest.raises(OSError, match="full"):
                answer(announced, STEPS, body, work)
    before = spent(announced)
    shutil.rmtree(announced.home / "outbox")
    if sent:
        with pytest.raises(PolicyRefusal, match="stored reply to this request is gone"):
            answer(announced, STEPS, body, work)
        assert work.calls == 1
    else:
        assert answer(announced, STEPS, body, work).tensors
        assert work.calls == 2
    assert spent(announced) == before > 0


def test_a_damaged_stored_reply_is_not_computed_again(announced):
    body = request(STEPS, "train")
    answer(announced, STEPS, body)
    (stored,) = (announced.home / "outbox").glob("*.safetensors")
    stored.write_bytes(stored.read_bytes()[:-2])
    work = Work(body)
    with pytest.raises(DataError, match="cannot be read"):
        answer(announced, STEPS, body, work)
    assert work.calls == 0


def test_each_run_needs_a_yes_for_its_own_recipe(tmp_path):
    site = make_site(tmp_path, approval="each-run")
    other = steps("privacy.epsilon=2.0")
    with pytest.raises(
        PolicyRefusal, match=r"policy\.approval = 'each-run': run 'run-1'"
    ) as caught:
        announce(site, STEPS)
    assert "site approve DIR run-1" in caught.value.remedy
    assert ledger_of(site).plans() == []
    ledger = ledger_of(site)
    ledger.note("approved", {"run": "run-1", "recipe_digest": other.digest, "name": "x"})
    with pytest.raises(PolicyRefusal, match="not approved"):
        announce(site, STEPS)
    ledger.note("approved", {"run": "run-1", "recipe_digest": STEPS.digest, "name": "x"})
    announce(site, STEPS)
    answer(site, STEPS, request(STEPS, "train"))
    with pytest.raises(PolicyRefusal, match="run 'run-2'"):
        announce(site, STEPS, "run-2")


def test_a_coordinator_that_ignores_the_missing_yes_gets_nothing(announced):
    strict = with_policy(announced, privacy="required", approval="each-run")
    refused(strict, request(STEPS, "train"), match="not approved")
    # Nor where no differential privacy is asked for.
    lax = with_policy(announced, approval="each-run")
    recipe = unprotected()
    body = request(recipe, "train", "run-9")
    same = {n: getattr(body, n) for n in ("kind", "run", "round", "site", "nonce")}
    reply = Reply(**same, recipe_digest=recipe.digest, code="ok", examples=9, loss=1.0)
    for door in (
        lambda: Gate(lax).admit(body, recipe),
        lambda: Gate(lax).release(body, reply, {"w": np.zeros(2, np.float32)}),
    ):
        with pytest.raises(PolicyRefusal, match="not approved"):
            door()
    assert "sent" not in kinds(lax)


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ({"tensors": ["head.*"]}, "policy.tensors"),
        ({"max_update_mb": 1e-5}, "max_update_mb"),
    ],
)
def test_what_may_not_leave_is_refused_before_it_costs_anything(announced, policy, line):
    strict = with_policy(announced, privacy="required", **policy)
    refused(strict, request(STEPS, "train"), match=line)
    # Where nobody said beforehand what it would be, it is charged, and still stays.
    body = request(STEPS, "train")
    with pytest.raises(PolicyRefusal, match=line):
        answer(strict, STEPS, body, work=lambda: Work(body)())
    assert "sent" not in kinds(strict)
    assert spent(strict) > 0


@pytest.mark.parametrize("policy", [{"privacy": "required"}, {"epsilon_cap": 3.0}])
def test_no_unprotected_reply_passes_where_the_policy_demands_privacy(tmp_path, policy):
    site = make_site(tmp_path, **{"privacy": "optional", **policy})
    body = request(unprotected(), "score")
    same = {n: getattr(body, n) for n in ("kind", "run", "round", "site", "nonce")}
    reply = Reply(**same, recipe_digest=body.recipe_digest, code="ok", examples=9)
    with pytest.raises(PolicyRefusal, match="this reply is not protected"):
        Gate(site).release(body, reply, {})
    assert not (site.home / "ledger.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["federation.rounds=0", "train.start=means"], "federation.rounds = 0 is refused"),
        (["federation.strategy=scaffold"], "federation.strategy = 'scaffold' is refused"),
        (["loss.triplet=0.5"], "loss.triplet"),
        (["pretrain.method=simclr"], "pretrain.method = 'simclr' is refused"),
    ],
)
def test_a_recipe_that_the_sites_own_noise_cannot_protect_is_refused_in_words(
    tmp_path, changes, line
):
    own = {"epsilon": 2.0, "method": "gradients"}
    site = make_site(tmp_path, privacy="optional", own=own)
    recipe = unprotected(*changes)
    with pytest.raises(PolicyRefusal, match=line):
        Gate(site).admit(request(recipe, "train"), recipe)
    assert not (site.home / "ledger.jsonl").exists()


def test_an_agreement_that_ends_stops_the_next_round(announced):
    ended = with_policy(announced, privacy="required", expires="2020-01-01")
    with pytest.raises(PolicyRefusal, match=r"policy\.expires = 2020-01-01"):
        Gate(ended).admit(request(STEPS, "train"), STEPS)


def test_several_processes_asked_the_same_answer_the_same_and_charge_once(announced, tmp_path):
    body, children = request(STEPS, "train"), []
    for number in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                tensors = answer(announced, STEPS, body).tensors
                (tmp_path / f"got-{number}").write_bytes(tensors["w"].data)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert len({(tmp_path / f"got-{n}").read_bytes() for n in range(3)}) == 1
    assert kinds(announced).count("reserved") == 1
    assert kinds(announced).count("sent") == 3


def written(site, *entries):
    """A chain that holds, whatever its entries say."""
    path = site.home / "ledger.jsonl"
    with Chain(path).writing() as chain:
        for kind, values in entries:
            chain.append(kind, values)
    return path


EVENT = PrivacyEvent("step", 1.0, 0.5, 2).as_json()
PLAN = {
    "run": "a", "recipe_digest": "0", "name": "a", "events": [EVENT], "portion": 2,
    "delta": 1e-5, "unit": "image", "target": 1.0, "units": 3,
}  # fmt: skip
RESERVED = {"run": "a", "round": 1, "request": "x", "event": EVENT}


@pytest.mark.parametrize(
    "entries",
    [
        [("announced", {**PLAN, "events": 5})],
        [("announced", {**PLAN, "events": [5]})],
        [("announced", {**PLAN, "events": [{**EVENT, "purpose": "gossip"}]})],
        [("announced", {**PLAN, "events": [{**EVENT, "purpose": []}]})],
        [("announced", {**PLAN, "events": [{**EVENT, "noise_multiplier": 0.0}]})],
        [("announced", {**PLAN, "events": [{**EVENT, "count": True}]})],
        [("announced", {**PLAN, "delta": "small"})],
        [("announced", {**PLAN, "unit": "pixel"})],
        [("announced", {k: v for k, v in PLAN.items() if k != "portion"})],
        [("announced", PLAN), ("announced", PLAN)],
        [("reserved", RESERVED)],
        [("announced", PLAN), ("reserved", {**RESERVED, "event": None})],
        [("announced", PLAN), ("reserved", {**RESERVED, "round": "1"})],
        [("sent", {"run": 5})],
        [("approved", {})],
        [("founded", {})],
        [("sent", {"run": "a", "request": "", "what": "x", "code": "ok", "protected": 1})],
    ],
)
def test_entries_that_cannot_be_are_bad_data(site, entries):
    path = written(site, *entries)
    found, _ = read_chain(path.read_bytes())
    with pytest.raises(DataError):
        plans_of(found)
    for _ in range(2):
        with pytest.raises(DataError):
            ledger_of(site).plans()
    with pytest.raises(DataError):
        announce(site, STEPS)


def test_a_ledger_that_does_not_say_over_which_data_it_is_takes_nothing_more(site):
    written(site, ("refused", {"run": "a"}))
    with pytest.raises(DataError, match="over which data"):
        announce(site, STEPS)


def test_a_payload_that_shapes_differ_from_what_was_said_is_a_bug_that_stays_here(announced):
    body = request(STEPS, "train")
    strict = with_policy(announced, privacy="required", tensors=["w"])
    secret = Payload(
        Work(body)().fields, {"w": np.ones(2, np.float32), "x": np.ones(9, np.float32)}
    )
    with pytest.raises(PolicyRefusal, match="'x' may not leave"):
        answer(strict, STEPS, body, work=lambda: secret)
    assert "sent" not in kinds(strict)


def test_an_entry_names_what_left(announced):
    departure = answer(announced, STEPS, request(STEPS, "train"))
    line = json.loads((announced.home / "ledger.jsonl").read_text().splitlines()[-1])
    assert (line["kind"], line["protected"], line["scores"]) == ("sent", True, False)
    assert line["bytes"] == departure.nbytes
    assert line["tensors"] == {"w": [2, 3], "gain": []}
    noisy = opened(announced, answer(announced, STEPS, request(STEPS, "score", round_=3)))
    assert noisy.noisy_scores is not None
    assert noisy.scores is None


def test_class_sums_are_two_releases_of_one_round(tmp_path):
    site, recipe = make_site(tmp_path), sums()
    announce(site, recipe)
    for phase in ("centre", "class-sums"):
        departure = answer(site, recipe, request(recipe, "release", phase=phase))
        assert set(departure.tensors) == {phase}
    # No cap and several orders: a single run's total is above its own epsilon.
    assert 2.0 < spent(site) < 2.4
    assert Site.open(site.home).name == "site-1"
