import bisect
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fgvc_core.audit.one_run import (
    bound_from_scores,
    epsilon_at_least,
    most_provable,
    p_value,
)
from fgvc_core.audit.settings import AuditSettings

ERROR = 0.05
counts = st.integers(1, 120).flatmap(
    lambda m: st.integers(1, m).flatmap(
        lambda r: st.tuples(st.just(m), st.just(r), st.integers(0, r))
    )
)


def slowly(m, r, v, epsilon, delta):
    """Corollary 5.4 as it is written, term by term."""
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    most = max((sum(mass[v - i : v]) / i for i in range(1, v + 1)), default=0.0)
    return min(sum(mass[v:]) + 2 * m * delta * most, 1.0)


@given(counts, st.floats(0, 5), st.sampled_from([0.0, 1e-5, 1e-3]))
@settings(deadline=None, max_examples=60)
def test_the_p_value_is_the_corollarys(counted, epsilon, delta):
    m, r, v = counted
    assert p_value(m, r, v, epsilon, delta) == pytest.approx(
        slowly(m, r, v, epsilon, delta), rel=1e-8, abs=1e-12
    )


def test_without_delta_it_is_a_binomials_tail():
    assert p_value(900, 50, 40, 1.0, 0.0) == pytest.approx(
        binom.sf(39, 50, math.e / (1 + math.e)), rel=1e-12
    )


@pytest.mark.parametrize("guesses", [1, 10, 100, 1000])
def test_all_right_has_a_closed_form(guesses):
    accuracy = ERROR ** (1 / guesses)
    wanted = max(math.log(accuracy / (1 - accuracy)), 0.0)
    assert epsilon_at_least(1000, guesses, guesses, 0.0, ERROR) == pytest.approx(wanted, abs=1e-9)


@given(counts, st.sampled_from([0.0, 1e-5, 1e-3]), st.sampled_from([0.01, 0.05, 0.2]))
@settings(deadline=None, max_examples=30)
def test_the_bound_is_the_last_epsilon_that_is_refuted(counted, delta, error):
    m, r, v = counted
    epsilon = epsilon_at_least(m, r, v, delta, error)
    if epsilon > 0:
        assert p_value(m, r, v, epsilon, delta) <= error
    assert p_value(m, r, v, epsilon + 1e-6, delta) > error
    assert epsilon_at_least(m, r, v, 2 * delta, error) <= epsilon + 1e-9
    if v < r:
        assert epsilon_at_least(m, r, v + 1, delta, error) >= epsilon - 1e-9


def randomised_response(generator, count, epsilon):
    """Coins, and scores of an attacker who sees each through epsilon-DP and no better."""
    coins = generator.integers(0, 2, size=count).astype(bool)
    honest = generator.random(count) < math.exp(epsilon) / (1 + math.exp(epsilon))
    return coins, np.where(honest, coins, ~coins) + 1e-3 * generator.random(count)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("guesses", [50, 200])
def test_randomised_response_is_bounded_from_below_at_the_stated_confidence(guesses, epsilon):
    # Its right guesses are binomial: how often the bound is above the truth is known exactly.
    too_many = bisect.bisect_left(
        range(guesses + 1),
        True,
        key=lambda v: epsilon_at_least(1000, guesses, v, 0.0, ERROR) > epsilon,
    )
    accuracy = math.exp(epsilon) / (1 + math.exp(epsilon))
    assert binom.sf(too_many - 1, guesses, accuracy) <= ERROR
    assert binom.sf(too_many - 2, guesses, accuracy) > ERROR


def test_trying_several_numbers_of_guesses_is_paid_for():
    generator = np.random.default_rng(1)
    bounds = []
    for _ in range(60):
        coins, scores = randomised_response(generator, 300, 1.0)
        bounds.append(bound_from_scores(scores, coins, (0.1, 0.5, 1.0), 0.0, ERROR).epsilon)
    assert np.mean(np.array(bounds) > 1.0) <= ERROR


def test_the_bound_closes_in_on_the_truth_with_many_coins():
    coins, scores = randomised_response(np.random.default_rng(2), 100_000, 1.0)
    found = bound_from_scores(scores, coins, (1.0,), 0.0, ERROR)
    assert 0.96 < found.epsilon <= 1.0
    assert (found.canaries, found.guesses) == (100_000, 100_000)


def test_a_mechanism_that_gives_a_few_away_is_excused_by_its_delta_and_by_no_less():
    generator = np.random.default_rng(3)
    epsilon, delta, fooled, blamed = 0.2, 0.01, 0, 0
    for _ in range(60):
        coins, scores = randomised_response(generator, 1000, epsilon)
        given_away = generator.random(1000) < delta
        scores = np.where(given_away, np.where(coins, 9.0, -9.0), scores)
        fooled += bound_from_scores(scores, coins, (0.008, 1.0), delta, ERROR).epsilon > epsilon
        blamed += bound_from_scores(scores, coins, (0.008,), 0.0, ERROR).epsilon > epsilon
    assert fooled <= 3
    assert blamed >= 40


def test_nothing_is_proven_by_guessing():
    generator = np.random.default_rng(4)
    bounds = [
        bound_from_scores(generator.random(500), generator.random(500) < 0.5, (0.1, 1.0), 0, ERROR)
        for _ in range(50)
    ]
    assert sum(bound.epsilon > 0 for bound in bounds) <= 5
    nobody = bound_from_scores(np.zeros(1), np.zeros(1, bool), (1.0,), 0.0, ERROR)
    assert (nobody.epsilon, nobody.guesses) == (0.0, 0)


def test_what_can_be_proven_at_most_is_what_the_documents_say():
    shares = AuditSettings().guesses
    found = [most_provable(m, shares, 1e-5, 0.04) for m in (1000, 2000, 10_000)]
    assert [round(epsilon, 1) for epsilon in found] == [5.2, 5.8, 6.5]
    assert max(found) < 8
    coins = np.random.default_rng(5).random(1000) < 0.5
    perfect = bound_from_scores(coins.astype(float), coins, shares, 1e-5, 0.04)
    assert perfect.epsilon == found[0]
