"""Privacy odometer: the joint cost of adaptively chosen plans, with Renyi orders fixed in advance.

A ledger chooses its orders before its first release (:func:`choose_rule`) and keeps them. The spent
epsilon that it reports then holds at any time, however that time was chosen.

Claim. Let P and Q be the laws of everything released with and without one unit (or vice versa), L_t
the privacy loss log(dP/dQ) of the first t releases, R_a(t) the sum of the releases' Renyi
divergences of order a, each of which may be chosen from earlier releases, and a_1 ... a_m orders
chosen before the first release. With

    c(a, d) = log(1 - 1/a) - log(d * a) / (a - 1)
    spent(t) = max(0, min over j of [R_{a_j}(t) + c(a_j, delta / m)])

for every stopping time T and every event E determined by the releases before T,

    P(E) <= E_Q[1_E * exp(spent(T))] + delta.

Proof.

1. Given the past, E_P[exp((a - 1) * loss)] of one release is exp((a - 1) * its divergence) at
   most. Hence M_a(t) = exp((a - 1) * (L_t - R_a(t))) is a nonnegative supermartingale under P
   that starts at 1 (the step behind Feldman and Zrnic 2021, theorem 3.1,
   https://arxiv.org/abs/2008.11193, and Lecuyer 2021, https://arxiv.org/abs/2103.01379). So is
   the average M = (M_{a_1} + ... + M_{a_m}) / m, and E_P[M(T)] <= 1 at every stopping time
   (optional stopping of a nonnegative supermartingale: Durrett 2019, theorem 4.8.4; Whitehouse
   et al. 2023, https://arxiv.org/abs/2203.05481, build their odometers on the same fact).
2. max(0, 1 - exp(c(a, d) - y)) <= d * exp((a - 1) * y) for every real y: with u = exp(-y) the
   largest value of u**(a - 1) - exp(c) * u**a is at u = exp(-c) * (a - 1) / a, where it is d.
   This is the conversion of Canonne, Kamath and Steinke 2020, proposition 12
   (https://arxiv.org/abs/2004.00010; also equation 20 of https://arxiv.org/abs/2001.05990).
3. Let j be the order that attains the minimum at T. By 2 with y = L_T - R_{a_j}(T) and
   d = delta / m: max(0, 1 - exp(spent(T) - L_T)) <= (delta / m) * M_{a_j}(T) <= delta * M(T).
   Raising spent(T) to 0 only makes the left side smaller.
4. P(E) - E_Q[1_E * exp(spent(T))] = E_P[1_E * (1 - exp(spent(T) - L_T))]
   <= E_P[max(0, 1 - exp(spent(T) - L_T))] <= delta * E_P[M(T)] <= delta.

If a cap stops every release that would raise spent above it, exp(spent(T)) <= exp(cap), and this is
(cap, delta)-differential privacy: the odometer is a filter too (Rogers et al. 2016,
https://arxiv.org/abs/1605.08294, define both; their odometer bounds the loss itself, outside an
event of probability delta, which is slightly stronger than the last line above).

Taking the best of *all* orders afterwards at the full delta, as for one fixed plan, is not covered
by this proof, and it fails: ``test_odometer.py`` stops at the best moment and measures more than
delta.

>>> from fgvc_core.privacy.accountant import PrivacyEvent
>>> run = [PrivacyEvent("class-sums", 4.0)]
>>> rule = choose_rule(run, cap=8.0, delta=1e-5)
>>> rule.orders, rule.one_plan
((19.0, 10.1, 5.7), False)
>>> [round(odometer(run * count, rule.orders, 1e-5), 2) for count in (0, 1, 2, 30)]
[0.0, 1.08, 1.66, 7.46]
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.privacy.accountant import PrivacyEvent, dp_event, epsilon_of_plan, merge, take

SPREAD = 4
"""The k-th order is the best one for SPREAD**k times the first plan, k = 0, 1, 2, ..."""

MOST_ORDERS = 6
UNCAPPED_ORDERS = 3
"""Number of orders without a cap: for 1, 4 and 16 times the first plan."""

Pair = tuple[tuple[PrivacyEvent, ...], tuple[PrivacyEvent, ...]]
"""(announced, released) of one plan."""


@dataclass(frozen=True)
class Rule:
    """How one ledger adds up its costs; fixed before its first release.

    Attributes:
        orders: Renyi orders of the odometer, each above 1; delta is divided equally among them.
        one_plan: As long as only the first plan was charged, the spent epsilon is the PLD cost of
            the whole announced plan, because the plan fits its cap only by PLD. Once another plan
            is charged, the odometer counts the first one *whole*.
    """

    orders: tuple[float, ...]
    one_plan: bool = False

    def as_json(self) -> dict[str, Any]:
        """Values for JSON; ``Rule(**values)`` reads them back."""
        return {"orders": list(self.orders), "one_plan": self.one_plan}


def choose_rule(events: Iterable[PrivacyEvent], cap: float | None, delta: float) -> Rule:
    """The rule of a ledger whose first plan has these events.

    It is chosen before anything is computed from pictures, and does not depend on them.

    Args:
        events: All events of the plan.
        cap: Largest cost of the whole ledger; None: no cap.
        delta: Delta of the cap.

    Returns:
        As many orders as are useful to fill the cap with plans like this one; ``one_plan`` if the
        odometer's cost of the plan exceeds the cap (its PLD cost may still fit).
    """
    plan = merge(events)
    if cap is None:
        return Rule(_orders_for(plan, UNCAPPED_ORDERS, delta))
    count = 0
    while count < MOST_ORDERS and _fits(plan, count + 1, cap, delta):
        count += 1
    # If the cap is raised later, there will be more than one such plan to count.
    return Rule(_orders_for(plan, count or 2, delta), one_plan=not count)


def odometer(events: Iterable[PrivacyEvent], orders: Sequence[float], delta: float) -> float:
    """Epsilon of everything released; valid at any stopping time, see the module's proof.

    Args:
        events: Events released so far; the result is 0 if there are none.
        orders: Orders chosen before the first of them; each in :func:`all_orders`.
        delta: Delta of the whole.
    """
    released = merge(events)
    if not released:
        return 0.0
    known, divergences = _total(released)
    at = [known.index(order) for order in orders]
    return float(max(0.0, np.min(divergences[at] + _conversion(delta / len(at))[at])))


def total_cost(first: Pair, others: Iterable[Pair], rule: Rule, delta: float) -> tuple[float, str]:
    """Epsilon of all plans of a ledger together, and the name of the method.

    Args:
        first: The plan that was charged first.
        others: All others.
        rule: The ledger's rule.
        delta: Delta of the whole.
    """
    beside = [event for _, released in others for event in released]
    announced, released = first
    if not released and not beside:
        return 0.0, "nothing was released"
    if not rule.one_plan:
        return odometer([*released, *beside], rule.orders, delta), "Renyi odometer"
    if not beside:
        return epsilon_of_plan(announced, delta), "PLD of one plan"
    whole = odometer([*announced, *beside], rule.orders, delta)
    return whole, "Renyi odometer, after one plan"


def all_orders() -> tuple[float, ...]:
    """The orders that a rule may choose from, ascending, each above 1."""
    known, _ = _curve(PrivacyEvent("scores", 1.0))
    return known


def _fits(plan: tuple[PrivacyEvent, ...], orders: int, cap: float, delta: float) -> bool:
    """Whether this many orders are useful: the last one's number of plans is within the cap."""
    several = tuple(take(event, event.count * SPREAD ** (orders - 1)) for event in plan)
    return odometer(several, _orders_for(plan, orders, delta), delta) <= cap


def _orders_for(plan: tuple[PrivacyEvent, ...], count: int, delta: float) -> tuple[float, ...]:
    known, divergences = _total(plan)
    conversion = _conversion(delta / count)
    best = [int(np.argmin(divergences * SPREAD**k + conversion)) for k in range(count)]
    return tuple(known[at] for at in best)


def _total(events: tuple[PrivacyEvent, ...]) -> tuple[tuple[float, ...], NDArray[np.float64]]:
    """All orders, and the sum of the events' Renyi divergences at each."""
    curves = [(event.count, *_curve(take(event, 1))) for event in events]
    known = curves[0][1]
    return known, sum((count * curve for count, _, curve in curves), np.zeros(len(known)))


@lru_cache(maxsize=256)
def _conversion(delta: float) -> NDArray[np.float64]:
    """c(a, delta) at each order."""
    a = np.array(all_orders())
    found: NDArray[np.float64] = np.log1p(-1 / a) - np.log(delta * a) / (a - 1)
    return found


@lru_cache(maxsize=4096)
def _curve(event: PrivacyEvent) -> tuple[tuple[float, ...], NDArray[np.float64]]:
    """(orders, Renyi divergences) of one release; cached, since every round adds one more."""
    # Imported lazily: the library takes a second to load, and only private runs need it.
    from dp_accounting import NeighboringRelation
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    # At some fractional orders the library's series does not converge, and it logs a warning each
    # time, which users cannot act on.
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        accountant.compose(dp_event(event))
    finally:
        absl.setLevel(level)
    orders = tuple(float(order) for order in accountant.orders)
    return orders, _convex(np.array(orders), np.asarray(accountant.rdp, dtype=np.float64))


def _convex(orders: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bounds at orders where the library found none, by interpolation between their neighbors.

    (a - 1) * divergence is convex in a and 0 at 1 (van Erven and Harremoes 2014, corollary 2,
    https://arxiv.org/abs/1206.2459), so a chord is an upper bound.
    """
    sound = np.isfinite(found) & (found >= 0)
    known = np.concatenate([[1.0], orders[sound]])
    chord = np.interp(
        orders,
        known,
        np.concatenate([[0.0], ((orders - 1) * found)[sound]]),
        right=math.inf,
    ) / (orders - 1)
    return np.where(sound, found, chord)
