"""Lower bound on epsilon from one run, by counting correctly guessed canaries.

Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run",
https://arxiv.org/abs/2305.08846. Each of m canaries is in the data with probability 1/2,
independently. The attacker sees the mechanism's output, guesses r of the m coins and abstains on
the others. Under pure DP, each guess is correct with probability e**eps / (1 + e**eps) at most,
whatever the others are, so the number of correct guesses is dominated by a binomial. Under
(epsilon, delta), the tail gains a term in delta (corollary 5.4; appendix D gives its computation).
An epsilon under which the observed count would be improbable is refuted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

LARGEST = 60.0
"""Upper end of the search for epsilon."""

_HALVINGS = 40


@dataclass(frozen=True)
class Bound:
    """Lower bound on epsilon that the guesses prove.

    Attributes:
        epsilon: The lower bound; 0 if nothing is proven.
        guesses: r, the number of coins guessed.
        correct: v, the number of correct guesses.
        canaries: m, the number of coins.
    """

    epsilon: float
    guesses: int
    correct: int
    canaries: int


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Upper bound on the probability of this many correct guesses under (epsilon, delta).

    Args:
        canaries: m, the number of coins.
        guesses: r, the number of coins guessed, at most m.
        correct: v, the number of correct guesses, at most r.
        epsilon: At least 0.
        delta: 0 to 1.

    Returns:
        An upper bound on P[at least v correct], 0 to 1.

    With one coin and pure DP, this is the accuracy of randomized response; with more coins, the
    tail of a binomial. Four of four correct at epsilon log 3 has probability (3/4)**4:

    >>> round(p_value(4, 4, 4, math.log(3), 0.0), 6) == round(0.75**4, 6)
    True
    """
    accuracy = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, accuracy))
    if delta == 0.0 or correct == 0:
        return min(tail, 1.0)
    # Delta's contribution is largest for the i that maximizes P[v - i <= binomial < v] / i.
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, accuracy))
    most = float(np.max(below / np.arange(1, correct + 1)))
    return min(tail + 2 * canaries * delta * most, 1.0)


def epsilon_at_least(
    canaries: int, guesses: int, correct: int, delta: float, error: float
) -> float:
    """The largest epsilon that this many correct guesses refute.

    Args:
        canaries: m.
        guesses: r.
        correct: v.
        delta: The delta at which epsilon was claimed.
        error: Probability that the bound is above the truth, 0 to 1.

    Returns:
        A lower bound on epsilon, at least 0.

    Example: 100 canaries, all guessed, all correctly, delta 0, 95 %. An accuracy p achieves that
    with probability p**100, which is 0.05 at p = 0.9705, and an accuracy p is randomized response
    at epsilon = log(p / (1 - p)):

    >>> round(epsilon_at_least(100, 100, 100, 0.0, 0.05), 3)
    3.493
    >>> p = 0.05 ** (1 / 100)
    >>> round(math.log(p / (1 - p)), 3)
    3.493

    Half of them correct proves nothing:

    >>> epsilon_at_least(100, 100, 50, 0.0, 0.05)
    0.0
    """
    if p_value(canaries, guesses, correct, 0.0, delta) > error:
        return 0.0
    low, high = 0.0, LARGEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if p_value(canaries, guesses, correct, middle, delta) <= error:
            low = middle
        else:
            high = middle
    return low


def bound_from_scores(
    scores_M: NDArray[np.float64],
    included_M: NDArray[np.bool_],
    shares: Sequence[float],
    delta: float,
    error: float,
) -> Bound:
    """Bound epsilon by guessing the coins with the most extreme scores.

    For each share r / m, the r / 2 highest scores are guessed "in" and the r / 2 lowest "out". The
    shares are fixed before the scores are seen and split the permitted error between them, so the
    best of the bounds holds. A share of 1 always makes mistakes: the number of coins on either side
    deviates from m / 2 by about the root of m.

    Args:
        scores_M: The attacker's scores; high if a canary seems to be in the data.
        included_M: The coins.
        shares: Shares of the coins to guess, each 0 to 1.
        delta: The delta at which epsilon was claimed.
        error: Probability that the bound is above the truth, 0 to 1.
    """
    canaries = len(scores_M)
    order_M = np.argsort(scores_M, kind="stable")
    bounds = [Bound(0.0, 0, 0, canaries)]
    for share in shares:
        each = int(canaries * share) // 2
        if not each:
            continue
        right = included_M[order_M[-each:]].sum() + (~included_M[order_M[:each]]).sum()
        correct = int(right)
        epsilon = epsilon_at_least(canaries, 2 * each, correct, delta, error / len(shares))
        bounds.append(Bound(epsilon, 2 * each, correct, canaries))
    return max(bounds, key=lambda bound: (bound.epsilon, bound.guesses))


def most_provable(canaries: int, shares: Sequence[float], delta: float, error: float) -> float:
    """The epsilon that :func:`bound_from_scores` proves if every guess is correct.

    A claim above it cannot be refuted with this number of canaries, even without noise.
    """
    return max(
        epsilon_at_least(canaries, guesses, guesses, delta, error / len(shares))
        for guesses in (int(canaries * share) // 2 * 2 for share in shares)
    )
