"""Meaning of (epsilon, delta): the most that any attacker can learn about one unit.

Differential privacy bounds hypothesis tests. An attacker who decides from everything that left
whether a unit's pictures were among the data, with false-alarm probability a, detects a unit that
is there with probability at most

    min(1, exp(epsilon) a + delta, 1 - exp(-epsilon) (1 - delta - a))

(Wasserman and Zhou 2010, https://arxiv.org/abs/0811.2501; Kairouz, Oh and Viswanath 2015,
https://arxiv.org/abs/1311.0776). The strongest attacker learns the truth with probability delta,
and otherwise sees evidence that changes the odds by a factor exp(epsilon) up or down. All bounds
here are that attacker's, so they are tight.
"""

import math
from typing import Any

PRIORS = (0.5, 0.1, 0.01)
"""Prior beliefs for which the report states the largest posterior."""

FALSE_ALARMS = (0.001, 0.01, 0.1)
"""False-alarm rates for which the report states the detection rate."""


def detection(epsilon: float, delta: float, false_alarms: float) -> float:
    """Largest detection rate at a false-alarm rate.

    Args:
        epsilon: At least 0.
        delta: 0 to 1.
        false_alarms: 0 to 1.
    """
    steep = delta
    if false_alarms > 0:
        # In log space, because exp(epsilon) alone may overflow.
        steep += math.exp(min(epsilon + math.log(false_alarms), 1.0))
    flat = 1 - math.exp(-epsilon) * (1 - delta - false_alarms)
    return min(1.0, steep, flat)


def right_guesses(epsilon: float, delta: float) -> float:
    """Largest probability of guessing right between in and out, if both are equally likely."""
    return (1 + delta * math.exp(-epsilon)) / (1 + math.exp(-epsilon))


def belief(prior: float, epsilon: float) -> float:
    """Largest posterior belief that a unit is in the data, except with probability delta.

    Args:
        prior: Prior belief, 0 to 1.
        epsilon: At least 0.
    """
    return prior / (prior + (1 - prior) * math.exp(-epsilon)) if prior > 0 else 0.0


def meaning_of(epsilon: float, delta: float) -> dict[str, Any]:
    """All bounds for one (epsilon, delta), as plain values."""
    return {
        "epsilon": epsilon,
        "delta": delta,
        "right_guesses": right_guesses(epsilon, delta),
        "beliefs": [{"before": p, "after": belief(p, epsilon)} for p in PRIORS],
        "noticed": [
            {"false_alarms": a, "at_most": detection(epsilon, delta, a)} for a in FALSE_ALARMS
        ],
    }
