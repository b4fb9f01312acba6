"""What (epsilon, delta) means: the most that anybody can find out about one unit.

Differential privacy is a statement about tests: whoever wants to tell from everything that
left whether one unit's pictures were among the data, and raises a false alarm with
probability a, notices a unit that is there with probability at most

    min(1, exp(epsilon) a + delta, 1 - exp(-epsilon) (1 - delta - a))

(Wasserman and Zhou 2010, https://arxiv.org/abs/0811.2501; Kairouz, Oh and Viswanath 2015,
https://arxiv.org/abs/1311.0776). No attacker does better than one who is told the truth with
probability delta, and otherwise sees evidence that raises or lowers the odds by
exp(epsilon): every bound here is that attacker's, and no larger one would be true.
"""

import math
from typing import Any

PRIORS = (0.5, 0.1, 0.01)
"""Beliefs before, for which the report says what they can become."""

FALSE_ALARMS = (0.001, 0.01, 0.1)
"""False-alarm rates for which the report says how many are noticed."""


def detection(epsilon: float, delta: float, false_alarms: float) -> float:
    """The largest share of units noticed at a share of false alarms, both 0 to 1.

    Args:
        epsilon: At least 0.
        delta: 0 to 1.
        false_alarms: 0 to 1.
    """
    steep = delta
    if false_alarms > 0:
        # exp(epsilon) may be beyond floating point; its product with a small share need not.
        steep += math.exp(min(epsilon + math.log(false_alarms), 1.0))
    flat = 1 - math.exp(-epsilon) * (1 - delta - false_alarms)
    return min(1.0, steep, flat)


def right_guesses(epsilon: float, delta: float) -> float:
    """The largest probability of a right guess between in and out, where both are as likely."""
    return (1 + delta * math.exp(-epsilon)) / (1 + math.exp(-epsilon))


def belief(prior: float, epsilon: float) -> float:
    """The largest belief afterwards that a unit is in, except with probability delta.

    Args:
        prior: The belief before, 0 to 1.
        epsilon: At least 0.
    """
    return prior / (prior + (1 - prior) * math.exp(-epsilon)) if prior > 0 else 0.0


def meaning_of(epsilon: float, delta: float) -> dict[str, Any]:
    """All of the above for one bound, as plain values."""
    return {
        "epsilon": epsilon,
        "delta": delta,
        "right_guesses": right_guesses(epsilon, delta),
        "beliefs": [{"before": p, "after": belief(p, epsilon)} for p in PRIORS],
        "noticed": [
            {"false_alarms": a, "at_most": detection(epsilon, delta, a)} for a in FALSE_ALARMS
        ],
    }
