"""Epsilon against dp-accounting called by hand, and against Opacus's accountants."""

import itertools
import warnings

import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from opacus.accountants import GaussianAccountant, PRVAccountant

from fgvc_core.errors import ConfigurationError
from fgvc_core.privacy import accountant
from fgvc_core.privacy.accountant import (
    DISCRETISATION,
    LEAST_SAMPLED_NOISE,
    TOLERANCE,
    PrivacyEvent,
    cost_of_plan,
    epsilon_of_plan,
    limit_epsilon,
    noise_for,
)

# (purpose, noise multiplier, sampling rate, count)
SETUPS = {
    "steps": ([("step", 1.0, 64 / 500, 240)], 1e-5),
    "many small steps": ([("step", 1.0, 0.01, 1000)], 1e-5),
    "steps at a looser delta": ([("step", 2.0, 0.1, 300)], 1e-4),
    "steps at a tighter delta": ([("step", 2.0, 0.1, 300)], 1e-7),
    "full batch": ([("step", 8.0, 1.0, 30)], 1e-5),
    "one release": ([("class-sums", 2.0, 1.0, 1)], 1e-5),
    "centre and class sums": ([("centre", 9.0, 1.0, 1), ("class-sums", 1.3, 1.0, 1)], 1e-5),
    "class sums and scores": (
        [("centre", 30.0, 1.0, 1), ("class-sums", 4.0, 1.0, 1), ("scores", 12.0, 1.0, 1)],
        1e-6,
    ),
    "rounds of steps": ([("step", 2.0, 0.05, 40)] * 4, 1e-5),
    "steps and scores": ([("step", 1.2, 0.02, 500), ("scores", 10.0, 1.0, 1)], 1e-5),
    "two rates": ([("step", 1.5, 0.05, 200), ("step", 3.0, 0.2, 100)], 1e-5),
    "sums first, then steps": (
        [("class-sums", 3.0, 1.0, 1), ("step", 2.5, 0.1, 60), ("scores", 20.0, 1.0, 2)],
        1e-5,
    ),
}


def events_of(setup):
    return [PrivacyEvent(*values) for values in setup]


def pld_by_hand(setup, delta):
    """One by one, in the order given: no merging, no cache, nothing of ours."""
    found = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-4)
    for _, noise, rate, count in setup:
        event = GaussianDpEvent(noise)
        found.compose(PoissonSampledDpEvent(rate, event) if rate < 1 else event, count)
    return found.get_epsilon(delta)


def of_opacus(kind, setup, delta, **kwargs):
    found = kind()
    found.history = [(noise, rate, count) for _, noise, rate, count in setup]
    with warnings.catch_warnings():
        # At a rate of 1 it takes logarithms of zero, rightly; GDP warns of itself.
        warnings.simplefilter("ignore")
        return found.get_epsilon(delta, **kwargs)


def test_the_twelve_set_ups_are_twelve():
    assert len(SETUPS) == 12
    assert DISCRETISATION == 1e-4


@pytest.mark.parametrize("name", SETUPS)
def test_epsilon_is_dp_accountings_by_hand_to_a_millionth(name):
    setup, delta = SETUPS[name]
    assert epsilon_of_plan(events_of(setup), delta) == pytest.approx(
        pld_by_hand(setup, delta), abs=1e-6
    )


@pytest.mark.parametrize("name", SETUPS)
def test_epsilon_is_opacus_prvs_to_one_per_cent(name):
    # Opacus's PRV takes a rate of 1 and a mix of events. It gives an upper bound, by default
    # 0.01 above its estimate: more than one per cent of a small epsilon, hence eps_error.
    setup, delta = SETUPS[name]
    prv = of_opacus(PRVAccountant, setup, delta, eps_error=0.002)
    assert epsilon_of_plan(events_of(setup), delta) == pytest.approx(prv, rel=0.01)


def test_gdp_under_estimates_which_is_why_it_is_refused():
    setup, delta = SETUPS["steps"]
    gdp = of_opacus(GaussianAccountant, setup, delta)
    assert gdp == pytest.approx(13.88, abs=0.01)
    assert epsilon_of_plan(events_of(setup), delta) == pytest.approx(14.45, abs=0.01)


def test_the_order_of_events_does_not_matter():
    setup, delta = SETUPS["sums first, then steps"]
    found = {epsilon_of_plan(events_of(p), delta) for p in itertools.permutations(setup)}
    assert len(found) == 1


def test_nothing_costs_nothing_and_more_costs_more():
    assert epsilon_of_plan([], 1e-5) == 0
    step = PrivacyEvent("step", 2.0, 0.1, 100)
    one = epsilon_of_plan([step], 1e-5)
    assert epsilon_of_plan([step, step], 1e-5) > one
    assert epsilon_of_plan([step], 1e-7) > one


STEP = PrivacyEvent("step", 2.0, 0.1, 100)
HALF = PrivacyEvent("step", 2.0, 0.1, 50)


def test_a_plan_that_was_finished_costs_what_was_announced():
    assert cost_of_plan([STEP], [HALF, HALF], 1e-5) == (
        epsilon_of_plan([STEP], 1e-5), "PLD of one plan"
    )  # fmt: skip


def test_a_plan_left_unfinished_costs_all_that_was_announced():
    # Whoever stops it may have chosen the moment by what was seen.
    for count in (1, 50, 99):
        some = PrivacyEvent("step", 2.0, 0.1, count)
        cost, how = cost_of_plan([STEP], [some], 1e-5)
        assert (cost, how) == (epsilon_of_plan([STEP], 1e-5), "PLD of one plan, unfinished")
    assert cost_of_plan([STEP], [], 1e-5) == (0.0, "nothing was released")


@pytest.mark.parametrize(
    ("epsilon", "rate", "count"), [(3.0, 0.1, 100), (0.5, 1.0, 1), (0.05, 0.01, 10)]
)
def test_noise_meets_its_target_from_below(epsilon, rate, count):
    def plan(noise):
        return [PrivacyEvent("step", noise, rate, count)]

    noise = noise_for(plan, epsilon, 1e-5)
    assert epsilon * (1 - TOLERANCE) <= epsilon_of_plan(plan(noise), 1e-5) <= epsilon


def test_a_target_that_little_noise_exceeds_gets_the_least_noise(monkeypatch):
    # Really composed, losses that reach so far take minutes: that is why there is a least.
    monkeypatch.setattr(accountant, "epsilon_of_plan", lambda events, delta: 5.0)
    noise = noise_for(lambda noise: [PrivacyEvent("step", noise, 0.001, 1)], 90.0, 1e-5)
    assert noise == LEAST_SAMPLED_NOISE


def test_an_epsilon_that_delta_covers_alone_is_met():
    noise = noise_for(lambda noise: [PrivacyEvent("step", noise)], 1e-5, 1e-3)
    assert epsilon_of_plan([PrivacyEvent("step", noise)], 1e-3) <= 1e-5


def test_a_target_that_no_noise_meets_is_refused_before_it_is_computed(monkeypatch):
    monkeypatch.setattr(accountant, "epsilon_of_plan", None)
    with pytest.raises(ConfigurationError, match="cannot be met"):
        noise_for(lambda noise: [PrivacyEvent("step", noise, 1.0, 10**9)], 1e-4, 1e-9)


@pytest.mark.parametrize("name", ["one release", "full batch", "many small steps"])
def test_the_first_guess_is_near_and_for_unsampled_gaussians_exact(name):
    setup, delta = SETUPS[name]
    events = events_of(setup)
    exact = all(event.sampling_rate == 1 for event in events)
    assert limit_epsilon(events, delta) == pytest.approx(
        epsilon_of_plan(events, delta), rel=1e-3 if exact else 0.25
    )


def test_what_was_found_is_not_computed_again(monkeypatch):
    setup, delta = SETUPS["two rates"]
    first = epsilon_of_plan(events_of(setup), delta)
    monkeypatch.setattr(accountant, "dp_event", None)
    assert epsilon_of_plan(reversed(events_of(setup)), delta) == first


def test_what_shared_noise_alone_promises_is_computed_at_once_however_weak(monkeypatch):
    """A stranger's recipe sets how many share the noise: no grid of gigabytes for it.

    205.3171 is the epsilon by PLD of both releases, which took 21 s and 1 GB.
    """
    monkeypatch.setattr(PLDAccountant, "compose", lambda *values: pytest.fail("a grid was made"))
    events = [PrivacyEvent("centre", 0.42889), PrivacyEvent("class-sums", 0.06127)]
    weak = epsilon_of_plan(events, 1e-5)
    mu = sum(event.noise_multiplier**-2 for event in events) ** 0.5
    assert weak == pytest.approx(limit_epsilon(events, 1e-5), rel=1e-9)
    assert mu**2 / 2 < weak < mu**2 / 2 + mu * 4.8
    assert 5_000 < epsilon_of_plan([PrivacyEvent("class-sums", 0.0096)], 1e-5) < 7_000
    # Above what a first guess looks for, and without an end in an overflow.
    assert epsilon_of_plan([PrivacyEvent("class-sums", 0.001)], 1e-5) > 5e5


def test_where_the_closed_form_begins_it_is_what_the_grid_says(monkeypatch):
    """On both sides of 100 the two agree; the grid is pessimistic by less than a thousandth."""
    events = [PrivacyEvent("class-sums", 0.094)]
    closed = epsilon_of_plan(events, 1e-5)
    assert closed > accountant.FAR_EPSILON
    monkeypatch.setattr(accountant, "FAR_EPSILON", 1e9)
    grid = epsilon_of_plan([PrivacyEvent("centre", 0.094)], 1e-5)
    assert closed <= grid <= closed * 1.001
