"""How a ledger adds up its costs is fixed before its first release, and read back from it."""

import functools
import json

import pytest

from fgvc_core.errors import DataError, PolicyRefusal
from fgvc_core.privacy.accountant import epsilon_of_plan, merge, take
from fgvc_core.privacy.odometer import choose_rule, odometer
from fgvc_core.privacy.planning import plan_for
from fieldmark.client.privacy.chain import TORN
from fieldmark.client.privacy.gate import Gate

from ..protected_sites import (
    announce,
    answer,
    ledger_of,
    make_site,
    request,
    steps,
    sums,
    with_policy,
)
from ..report_homes import entries_of, write_chain

STEPS, SUMS = steps(), sums()


@functools.cache
def plan():
    return plan_for(STEPS.privacy, 3)


@functools.cache
def whole():
    return epsilon_of_plan(plan(), 1e-5)


def total(site):
    return ledger_of(site).total(1e-5)


def train(site, run="run-1", rounds=(1,), recipe=STEPS):
    for round_ in rounds:
        answer(site, recipe, request(recipe, "train", run, round_))


def rules(site):
    return [e.values["rule"] for e in ledger_of(site).entries() if e.kind == "announced"]


def test_the_rule_is_in_the_announcement_before_anything_is_released(tmp_path):
    for number, cap in enumerate((whole(), 5.0, 40.0, "none")):
        site = make_site(tmp_path / str(number), epsilon_cap=cap)
        announce(site, STEPS)
        wanted = choose_rule(plan(), None if cap == "none" else cap, 1e-5)
        assert rules(site) == [wanted.as_json()]
        assert wanted.one_plan == (cap == whole())
        assert ledger_of(site).rule() is None
        train(site)
        assert ledger_of(site).rule() == wanted


def test_what_is_spent_rises_with_each_release_by_the_orders_of_the_first_plan(tmp_path):
    site = make_site(tmp_path, epsilon_cap=40.0)
    announce(site, STEPS)
    (step,) = (event for event in plan() if event.purpose == "step")
    orders = choose_rule(plan(), 40.0, 1e-5).orders
    for round_ in (1, 2, 3):
        train(site, rounds=(round_,))
        released = [take(step, 2 * round_)]
        assert total(site) == (odometer(released, orders, 1e-5), "Renyi odometer")
    announce(site, SUMS, "run-2")
    answer(site, SUMS, request(SUMS, "release", "run-2", phase="centre"))
    centre = next(e for e in plan_for(SUMS.privacy, 1) if e.purpose == "centre")
    assert total(site)[0] == odometer([*released, centre], orders, 1e-5)
    # The second run's announcement does not change the rule.
    assert ledger_of(site).rule().orders == orders


def test_a_run_that_fits_only_as_one_plan_costs_the_whole_plan_from_its_first_release(tmp_path):
    site = make_site(tmp_path, epsilon_cap=whole())
    announce(site, STEPS)
    assert total(site) == (0.0, "nothing was released")
    for round_ in (1, 2, 3):
        train(site, rounds=(round_,))
        assert total(site) == (whole(), "PLD of one plan")
    with pytest.raises(PolicyRefusal, match=r"policy\.epsilon_cap"):
        announce(site, steps("privacy.epsilon=0.01"), "run-2")
    answer(site, STEPS, request(STEPS, "score", round_=3))
    assert total(site) == (whole(), "PLD of one plan")


def test_beside_one_plan_another_fits_under_a_raised_cap_if_it_does_beside_the_whole(tmp_path):
    site = make_site(tmp_path, epsilon_cap=whole())
    announce(site, STEPS)
    train(site)
    small = sums("privacy.epsilon=0.5")
    orders = ledger_of(site).rule().orders
    needed = odometer([*plan(), *plan_for(small.privacy, 1)], orders, 1e-5)
    with pytest.raises(PolicyRefusal, match=r"policy\.epsilon_cap"):
        announce(with_policy(site, epsilon_cap=needed * 0.999), small, "run-2")
    raised = with_policy(site, epsilon_cap=needed * 1.001)
    announce(raised, small, "run-2")
    assert total(raised) == (whole(), "PLD of one plan")
    for phase in ("centre", "class-sums"):
        answer(raised, small, request(small, "release", "run-2", phase=phase))
    cost, how = total(raised)
    assert how == "Renyi odometer, after one plan"
    assert cost == pytest.approx(needed)
    # Of the first plan two thirds were never released; they are paid for all the same.
    train(raised, rounds=(2, 3))
    assert total(raised)[0] == pytest.approx(needed)


def test_an_announced_plan_that_released_nothing_binds_nothing(tmp_path):
    site = make_site(tmp_path, epsilon_cap=whole())
    announce(site, STEPS, "never")
    announce(site, SUMS, "run-1")
    answer(site, SUMS, request(SUMS, "release", phase="centre"))
    assert [rule["one_plan"] for rule in rules(site)] == [True, False]
    assert ledger_of(site).rule().one_plan is False
    assert total(site)[1] == "Renyi odometer"
    with pytest.raises(PolicyRefusal, match=r"policy\.epsilon_cap"):
        train(site, "never")


def test_a_cap_that_is_raised_or_lowered_later_changes_no_rule(tmp_path):
    site = make_site(tmp_path, epsilon_cap=whole())
    announce(site, STEPS)
    for cap in (50.0, 1000.0, "none"):
        changed = with_policy(site, epsilon_cap=cap)
        # The roll call may be repeated at any time.
        announce(changed, STEPS)
    train(changed)
    assert rules(changed) == [choose_rule(plan(), whole(), 1e-5).as_json()]
    assert total(changed) == (whole(), "PLD of one plan")
    lowered = with_policy(site, epsilon_cap=whole() / 2)
    with pytest.raises(PolicyRefusal, match=r"policy\.epsilon_cap"):
        train(lowered, rounds=(2,))


def test_another_delta_later_is_answered_at_the_same_orders(tmp_path):
    site = make_site(tmp_path, epsilon_cap=40.0)
    announce(site, STEPS)
    train(site)
    orders = ledger_of(site).rule().orders
    (plan,) = ledger_of(site).plans()
    for delta in (1e-4, 1e-7):
        assert ledger_of(site).total(delta)[0] == odometer(plan.released, orders, delta)


def test_a_torn_line_before_any_charge_settles_the_rule_of_the_plan_it_is_charged_to(tmp_path):
    site = make_site(tmp_path, epsilon_cap=40.0)
    announce(site, STEPS)
    with (site.home / "ledger.jsonl").open("ab") as file:
        file.write(b'{"n": 2, "time')
    announce(site, SUMS, "run-2")
    assert TORN in [entry.kind for entry in ledger_of(site).entries()]
    first, second = ledger_of(site).plans()
    assert (first.first, second.first) == (True, False)
    assert merge(first.lost)
    assert total(site)[0] == odometer(first.lost, first.rule.orders, 1e-5)


def test_a_ledger_of_an_earlier_version_is_added_up_as_one_plan_then_with_the_whole_of_it(
    tmp_path, monkeypatch
):
    site = make_site(tmp_path, epsilon_cap=40.0)
    announce(site, STEPS)
    train(site)
    entries = entries_of(site.home / "ledger.jsonl")
    for entry in entries:
        entry.pop("rule", None)
    moved = tmp_path / "moved"
    site.home.rename(moved)
    write_chain(moved / "ledger.jsonl", entries)
    # The earlier version's register knew nothing of a home without pictures of its own.
    monkeypatch.setenv("FIELDMARK_STATE", str(tmp_path / "state"))
    old = type(site).open(moved)
    assert total(old) == (whole(), "PLD of one plan")
    train(old, rounds=(2,))
    announce(old, STEPS)
    announce(old, SUMS, "run-2")
    answer(old, SUMS, request(SUMS, "release", "run-2", phase="centre"))
    orders = choose_rule(plan(), None, 1e-5).orders
    centre = next(e for e in plan_for(SUMS.privacy, 1) if e.purpose == "centre")
    assert total(old)[0] == odometer([*plan(), centre], orders, 1e-5)


@pytest.mark.parametrize(
    "rule", [{"orders": [], "one_plan": False}, {"orders": [1.0], "one_plan": False}, {}, "best"]
)
def test_a_rule_that_cannot_be_is_bad_data(tmp_path, rule):
    site = make_site(tmp_path, epsilon_cap=40.0)
    announce(site, STEPS)
    entries = entries_of(site.home / "ledger.jsonl")
    entries[1]["rule"] = rule
    moved = tmp_path / "moved"
    site.home.rename(moved)
    write_chain(moved / "ledger.jsonl", entries)
    with pytest.raises(DataError, match="cannot be"):
        ledger_of(type(site).open(moved)).plans()


def test_a_repeated_roll_call_under_another_cap_is_the_same_plan(tmp_path):
    site = make_site(tmp_path, epsilon_cap=5.0)
    announce(site, STEPS)
    announce(with_policy(site, epsilon_cap=900.0), STEPS)
    lines = [json.loads(x) for x in (site.home / "ledger.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["founded", "announced"]
    assert Gate(site).ledger.plan("run-1") is not None
