"""What a report says that epsilon means, against mechanisms whose attacks are known exactly."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.client.privacy.report.figures import percent
from fieldmark.client.privacy.report.meaning import belief, detection, meaning_of, right_guesses
from fieldmark.client.privacy.report.words import one_in

EPSILONS = st.floats(0.0, 700.0)
DELTAS = st.floats(0.0, 0.5)
SHARES = st.floats(0.0, 1.0)
PHI = NormalDist().cdf


@given(EPSILONS, DELTAS, SHARES)
def test_the_bound_is_the_best_test_against_the_mechanism_that_reaches_it(epsilon, delta, alarms):
    # Says the truth with probability delta; else one of two answers whose odds are exp(epsilon).
    right = (1 - delta) / (1 + math.exp(-epsilon))
    wrong = right * math.exp(-epsilon)
    outcomes = [(delta, 0.0), (right, wrong), (wrong, right), (0.0, delta)]
    noticed, left = 0.0, alarms
    for inside, outside in outcomes:
        share = 1.0 if outside <= left or outside == 0 else left / outside
        noticed += share * inside
        left = max(left - share * outside, 0.0)
    assert detection(epsilon, delta, alarms) == pytest.approx(noticed, abs=1e-9)


@given(st.floats(0.3, 20.0), st.floats(0.0, 8.0), SHARES)
def test_the_best_test_against_gaussian_noise_never_beats_the_bound(noise, epsilon, alarms):
    # Balle and Wang 2018, theorem 8: delta of a Gaussian mechanism of sensitivity 1.
    a, b = 0.5 / noise - epsilon * noise, -0.5 / noise - epsilon * noise
    delta = max(PHI(a) - math.exp(epsilon) * PHI(b), 0.0)
    inside = min(max(alarms, 1e-12), 1 - 1e-12)
    power = 1 - PHI(NormalDist().inv_cdf(1 - inside) - 1 / noise)
    assert power <= detection(epsilon, delta, inside) + 1e-9


@given(EPSILONS, DELTAS)
def test_a_right_guess_is_the_best_point_of_the_same_curve(epsilon, delta):
    corner = (1 - delta) * math.exp(-epsilon) / (1 + math.exp(-epsilon))
    best = (detection(epsilon, delta, corner) + 1 - corner) / 2
    assert right_guesses(epsilon, delta) == pytest.approx(best, abs=1e-9)
    assert right_guesses(epsilon, delta) >= (detection(epsilon, delta, 0.3) + 0.7) / 2 - 1e-9


@given(st.floats(0.0, 1.0), st.floats(0.0, 30.0))
def test_a_belief_follows_bayes_with_odds_multiplied_by_exp_epsilon(prior, epsilon):
    after = belief(prior, epsilon)
    assert prior - 1e-12 <= after <= 1
    if 1e-9 < prior < 1 - 1e-6 and after < 1 - 1e-9:
        odds = after / (1 - after)
        assert odds == pytest.approx(math.exp(epsilon) * prior / (1 - prior), rel=1e-3)


def test_figures_that_can_be_looked_up():
    told = meaning_of(math.log(3), 0.0)
    assert told["right_guesses"] == pytest.approx(0.75)
    assert [round(b["after"], 4) for b in told["beliefs"]] == [0.75, 0.25, 0.0294]
    assert told["noticed"][1]["at_most"] == pytest.approx(0.03)
    assert detection(0.0, 0.0, 0.37) == pytest.approx(0.37)
    assert detection(1000.0, 1e-5, 0.0) == pytest.approx(1e-5)


def test_shares_and_odds_read_as_they_are():
    assert [percent(x) for x in (0.5, 0.98201, 0.99966, 1e-5, 0.0, 1.0)] == [
        "50 %", "98.2 %", "99.97 %", "0.001 %", "0 %", "100 %"
    ]  # fmt: skip
    assert one_in(1e-5) == "1 in 100,000"
