"""The odometer against the exact loss of Gaussian releases, and against other accountants."""

import doctest
import math
import warnings

import numpy as np
import pytest
from opacus.accountants import RDPAccountant

from fgvc_core.privacy import odometer as module
from fgvc_core.privacy.accountant import PrivacyEvent, epsilon_of_plan
from fgvc_core.privacy.odometer import Rule, all_orders, choose_rule, odometer, total_cost

from .test_accountant import SETUPS, events_of, of_opacus

STEP = PrivacyEvent("step", 2.0, 0.1, 100)
FEW = PrivacyEvent("step", 2.0, 0.1, 3)
SUMS = PrivacyEvent("class-sums", 3.0)

DELTA = 1e-2
"""Large enough to be measured."""

LADDER = tuple(3.0 / 2 ** (t / 2) for t in range(12))
"""Noise multipliers; each release is twice as dear as the one before."""


def best_order_afterwards(events, delta):
    """The rule of before: every order at the full delta, and whichever is least."""
    return min(odometer(events, (order,), delta) for order in all_orders())


def growing(step, losses_N):
    """The next of the ladder, whatever was seen."""
    return np.full(len(losses_N), step)


def chasing(step, losses_N):
    """A dear release where the loss is high already, a cheap one where it is not."""
    return np.where(losses_N > step / 4, step, 0)


def excess_of(spent_of, choose, repeats=60_000, margin=0.4):
    """Mean of max(0, 1 - exp(spent - loss)) when one stops at a good moment, and its error.

    It is what delta has to cover: P(E) <= E_Q[1_E exp(spent)] + mean for every event E.

    Args:
        spent_of: Counts of each noise of the ladder, (12,) -> epsilon.
        choose: (step, losses) -> which noise of the ladder comes next, for each repetition.
        repeats: Repetitions.
        margin: One stops where the loss is above what is said to be spent by this much.
    """
    rng = np.random.default_rng(3)
    noises = np.array(LADDER)
    losses_N, excess_N = np.zeros(repeats), np.zeros(repeats)
    counts_NK = np.zeros((repeats, len(noises)), dtype=np.int64)
    going_N = np.ones(repeats, dtype=bool)
    for step in range(len(noises)):
        at_N = choose(step, losses_N)
        noise_N = noises[at_N]
        # The loss of a Gaussian release is Gaussian, with this mean and deviation under P.
        drawn_N = 1 / (2 * noise_N**2) + rng.standard_normal(repeats) / noise_N
        losses_N = np.where(going_N, losses_N + drawn_N, losses_N)
        counts_NK[going_N, at_N[going_N]] += 1
        known, index_N = np.unique(counts_NK, axis=0, return_inverse=True)
        spent_N = np.array([spent_of(counts) for counts in known])[index_N.reshape(-1)]
        last = step == len(noises) - 1
        stops_N = going_N & ((losses_N > spent_N + margin) | last)
        excess_N[stops_N] = -np.expm1(np.minimum(spent_N - losses_N, 0))[stops_N]
        going_N &= ~stops_N
    return excess_N.mean(), excess_N.std() / math.sqrt(repeats)


def ladder_events(counts):
    pairs = zip(LADDER, counts.tolist(), strict=True)
    return [PrivacyEvent("step", noise, 1.0, count) for noise, count in pairs if count]


@pytest.mark.parametrize("choose", [growing, chasing])
@pytest.mark.parametrize("cap", [1.5, 20.0, None])
def test_whoever_stops_at_the_best_moment_finds_no_more_than_delta(choose, cap):
    orders = choose_rule([PrivacyEvent("step", LADDER[0])], cap, DELTA).orders
    mean, error = excess_of(lambda n: odometer(ladder_events(n), orders, DELTA), choose)
    assert mean + 4 * error <= DELTA


def test_the_best_order_chosen_afterwards_is_no_odometer():
    mean, error = excess_of(lambda n: best_order_afterwards(ladder_events(n), DELTA), growing)
    assert mean - 4 * error > DELTA


def test_a_single_order_uses_delta_up_where_one_stops_at_the_right_moment():
    """The bound is no idle one: with many small releases the excess comes near delta."""
    orders = choose_rule([PrivacyEvent("step", LADDER[0])], 1.5, DELTA).orders
    assert len(orders) == 1
    mean, _ = excess_of(lambda n: odometer(ladder_events(n), orders, DELTA), growing, margin=0.1)
    assert mean > DELTA / 20


@pytest.mark.parametrize("name", SETUPS)
def test_the_odometer_is_never_below_pld(name):
    setup, delta = SETUPS[name]
    events = events_of(setup)
    for cap in (3.0, 50.0, None):
        orders = choose_rule(events, cap, delta).orders
        assert odometer(events, orders, delta) >= epsilon_of_plan(events, delta)


@pytest.mark.parametrize("name", ["steps", "full batch", "one release", "two rates"])
def test_at_its_best_order_it_is_opacus_renyi(name):
    setup, delta = SETUPS[name]
    found = best_order_afterwards(events_of(setup), delta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found == pytest.approx(of_opacus(RDPAccountant, setup, delta), rel=0.02)


def test_of_one_gaussian_it_is_the_formula():
    noise, order, delta = 4.0, 9.6, 1e-5
    converted = math.log(1 - 1 / order) - math.log(delta / 2 * order) / (order - 1)
    found = odometer([PrivacyEvent("class-sums", noise)], (order, 64.0 - 1), delta)
    assert found == pytest.approx(order / (2 * noise**2) + converted)


def test_orders_without_a_convergent_series_are_bounded_by_those_beside_them(caplog):
    # The library's series for the first of these ends in infinity.
    with caplog.at_level("WARNING"):
        event = PrivacyEvent("step", 2.074, 0.25, 7)
        found = [odometer([event], (order,), 1e-5) for order in all_orders()]
    assert not caplog.records
    assert all(math.isfinite(epsilon) for epsilon in found)
    at = all_orders().index(9.5)
    assert found[at] <= max(found[at - 5], found[at + 5]) * 1.05


def test_nothing_costs_nothing_and_more_costs_more():
    rule = choose_rule([STEP], None, 1e-5)
    spent = [odometer([STEP] * count, rule.orders, 1e-5) for count in range(4)]
    assert spent[0] == 0.0
    assert spent == sorted(spent)
    assert odometer([STEP], rule.orders, 1e-7) > spent[1]


@pytest.mark.parametrize(
    ("epsilon_cap", "orders"), [(5.5, 1), (20.0, 3), (100.0, 5), (1e9, 6), (None, 3)]
)
def test_there_are_as_many_orders_as_serve_to_fill_the_cap(epsilon_cap, orders):
    rule = choose_rule([STEP], epsilon_cap, 1e-5)
    assert (len(rule.orders), rule.one_plan) == (orders, False)
    assert odometer([STEP], rule.orders, 1e-5) <= (epsilon_cap or math.inf)


def test_many_small_runs_under_a_large_cap_cost_little_more_than_with_hindsight():
    small = PrivacyEvent("class-sums", 4.22)
    rule = choose_rule([small], 8.0, 1e-5)
    fit = max(n for n in range(1, 60) if odometer([small] * n, rule.orders, 1e-5) <= 8.0)
    known = max(n for n in range(1, 60) if best_order_afterwards([small] * n, 1e-5) <= 8.0)
    first = max(n for n in range(1, 60) if odometer([small] * n, rule.orders[:1], 1e-5) <= 8.0)
    assert fit >= 0.8 * known
    assert first <= 0.5 * known


def test_a_plan_that_fits_only_as_one_plan_leaves_no_room_for_another():
    cap = epsilon_of_plan([STEP], 1e-5)
    rule = choose_rule([STEP], cap, 1e-5)
    assert rule.one_plan
    whole = (STEP,), (FEW,)
    assert total_cost(whole, [], rule, 1e-5) == (cap, "PLD of one plan")
    assert total_cost(((STEP,), ()), [], rule, 1e-5) == (0.0, "nothing was released")
    # Another counts beside all that was announced of the first, not what was released of it.
    cost, how = total_cost(whole, [((SUMS,), (SUMS,))], rule, 1e-5)
    assert how == "Renyi odometer, after one plan"
    assert cost == odometer([STEP, SUMS], rule.orders, 1e-5) > cap


def test_under_the_odometer_a_plan_costs_what_was_released_of_it():
    rule = Rule((8.0, 4.0))
    cost, how = total_cost(((STEP,), (FEW,)), [((SUMS,), (SUMS,)), ((STEP,), ())], rule, 1e-5)
    assert how == "Renyi odometer"
    assert cost == odometer([FEW, SUMS], (8.0, 4.0), 1e-5)


def test_a_rule_round_trips():
    rule = choose_rule([STEP], 20.0, 1e-5)
    values = rule.as_json()
    assert Rule(tuple(values["orders"]), values["one_plan"]) == rule


def test_the_example_in_the_docstring_gives_what_it_says():
    found = doctest.testmod(module)
    assert (found.failed, found.attempted) == (0, 5)
