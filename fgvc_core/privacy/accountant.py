"""What events cost: dp-accounting's privacy loss distributions, and a Renyi filter.

Inside one plan, announced before its first release, the events are composed as privacy
loss distributions (Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380;
pessimistic estimates, add-or-remove-one). Across plans that were chosen one after
another, each perhaps because of what the last one showed, that is not proven; a Renyi
filter is (Feldman and Zrnic 2021, https://arxiv.org/abs/2008.11193; Lecuyer 2021,
https://arxiv.org/abs/2103.01379), and costs some more.

Opacus's GDP accountant is not offered, nor used for more than a first guess: it
under-estimates (13.88 where both
PLD and PRV give 14.45 for N = 500, B = 64, 240 steps, noise multiplier 1).
"""

import logging
import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import ConfigurationError
from fgvc_core.privacy.central_limit import LARGEST_NOISE, limit_epsilon, noise_by_limit
from fgvc_core.privacy.events import LEAST_SAMPLED_NOISE, Plan, PrivacyEvent, merge, take

DISCRETISATION = 1e-4
"""Step of the privacy loss distribution's grid."""

TOLERANCE = 1e-3
"""A target epsilon is met from below within this share of it."""


def epsilon_of_plan(events: Iterable[PrivacyEvent], delta: float) -> float:
    """Epsilon of one plan whose events were all announced beforehand.

    Args:
        events: Any order.
        delta: 0 to 1.

    Returns:
        Epsilon under add-or-remove-one, an upper bound; 0 where there are no events.
    """
    return _epsilon("pld", merge(events), delta)


def epsilon_of_filter(events: Iterable[PrivacyEvent], delta: float) -> float:
    """Epsilon by Renyi composition, valid across adaptively chosen plans."""
    return _epsilon("renyi", merge(events), delta)


def cost_of_plan(
    announced: Iterable[PrivacyEvent], released: Iterable[PrivacyEvent], delta: float
) -> tuple[float, str]:
    """Epsilon of one plan as far as it was carried out, and the name of the method.

    When a plan was left unfinished, the moment may have been chosen because of what was
    seen: then the cheaper of two bounds that hold all the same, the whole plan's and the
    Renyi filter's over what was released.
    """
    announced, released = merge(announced), merge(released)
    if not released:
        return 0.0, "nothing was released"
    whole = epsilon_of_plan(announced, delta)
    if announced == released:
        return whole, "PLD of one plan"
    part = epsilon_of_filter(released, delta)
    return (part, "Renyi filter") if part < whole else (whole, "PLD of one plan, unfinished")


def total_cost(
    plans: Iterable[tuple[Iterable[PrivacyEvent], Iterable[PrivacyEvent]]], delta: float
) -> tuple[float, str]:
    """Epsilon of all plans of a ledger together, and the name of the method.

    Args:
        plans: (announced, released) events of each plan.
        delta: Of the whole.
    """
    used = [(merge(a), merge(r)) for a, r in plans]
    used = [(announced, released) for announced, released in used if released]
    if not used:
        return 0.0, "nothing was released"
    if len(used) == 1:
        return cost_of_plan(*used[0], delta)
    released = [event for _, events in used for event in events]
    return epsilon_of_filter(released, delta), "Renyi filter over several plans"


def noise_for(plan: Plan, epsilon: float, delta: float) -> float:
    """The smallest base noise multiplier whose plan costs at most a target.

    Args:
        plan: Base noise multiplier -> events; the larger, the cheaper.
        epsilon: The target.
        delta: Of the whole plan.

    Returns:
        A noise multiplier whose plan costs between ``epsilon * (1 - TOLERANCE)`` and
        ``epsilon``, or less where units are sampled and the least noise is enough.

    Raises:
        ConfigurationError: if no noise multiplier up to 1e5 is enough.
    """
    key = merge(plan(1.0)), epsilon, delta
    if key not in _FOUND:
        _FOUND[key] = _search(plan, epsilon, delta)
    return _FOUND[key]


_FOUND: dict[tuple[tuple[PrivacyEvent, ...], float, float], float] = {}


def _search(plan: Plan, epsilon: float, delta: float) -> float:
    """Guess by the central limit, correct by what the guess costs: about three evaluations."""
    sampled = any(event.sampling_rate < 1.0 for event in plan(1.0))
    least = LEAST_SAMPLED_NOISE if sampled else 0.0
    low, high = 0.0, math.inf
    aim = epsilon * (1 - TOLERANCE / 2)
    noise = noise_by_limit(plan, aim, delta)
    for _ in range(100):
        if noise >= LARGEST_NOISE:
            break
        noise = max(noise, least)
        cost = epsilon_of_plan(plan(noise), delta)
        if cost <= epsilon and (cost >= epsilon * (1 - TOLERANCE) or noise == least):
            return noise
        low, high = (noise, high) if cost > epsilon else (low, noise)
        if high / max(low, 1e-300) < 1 + 1e-9:
            return high
        # Between the two where the correction leaves them, or delta covers all of the cost.
        between = math.sqrt(max(low, high / 16) * high) if high < math.inf else low * 1.1
        if cost > 0:
            wanted = aim * limit_epsilon(plan(noise), delta) / cost
            noise = noise_by_limit(plan, wanted, delta)
        if cost == 0 or not low < noise < high:
            noise = between
    raise ConfigurationError(
        f"privacy.epsilon = {epsilon:g} at delta {delta:g} cannot be met.",
        why="Not even noise of 100,000 times the sensitivity is enough.",
        remedy="Ask for a larger epsilon, fewer rounds or steps, or a smaller rate.",
    )


@lru_cache(maxsize=4096)
def _epsilon(method: str, events: tuple[PrivacyEvent, ...], delta: float) -> float:
    if not events:
        return 0.0
    # Imported here: the library takes a second, and a run without privacy needs none of it.
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import compute_epsilon

    if method == "renyi":
        curves = [(event.count, *_renyi_curve(take(event, 1))) for event in events]
        orders = curves[0][1]
        total = sum((count * curve for count, _, curve in curves), np.zeros(len(orders)))
        return float(compute_epsilon(orders, total, delta)[0])
    accountant = PLDAccountant(
        NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=DISCRETISATION
    )
    for event in events:
        accountant.compose(_dp_event(event), event.count)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=4096)
def _renyi_curve(event: PrivacyEvent) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(orders, Renyi divergences) of one release: a round adds one more to a sum of these."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    # A series that does not converge at some order leaves that order out, which is sound; the
    # library says so each time on standard error, where nobody can do anything about it.
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        accountant.compose(_dp_event(event))
    finally:
        absl.setLevel(level)
    return accountant.orders, accountant.rdp


def _dp_event(event: PrivacyEvent) -> object:
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    if event.sampling_rate >= 1.0:
        return gaussian
    return dp_accounting.PoissonSampledDpEvent(event.sampling_rate, gaussian)
