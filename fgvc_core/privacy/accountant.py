"""What one plan costs: dp-accounting's privacy loss distributions (PLD).

Inside one plan, announced before its first release, the events are composed as privacy
loss distributions (Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380;
pessimistic estimates, add-or-remove-one). The coordinator may ask for a plan's releases in any
order, and stop early, because of what it has seen: the events are the same whatever their order,
and fewer are a function of all of them, so the bound holds. Across plans that were chosen one
after another it does not; :mod:`fgvc_core.privacy.odometer` adds those up, and costs some more.

Opacus's GDP accountant is not offered, nor used for more than a first guess: it
under-estimates (13.88 where both
PLD and PRV give 14.45 for N = 500, B = 64, 240 steps, noise multiplier 1).
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from fgvc_core.errors import ConfigurationError
from fgvc_core.privacy.central_limit import LARGEST_NOISE, limit_epsilon, noise_by_limit
from fgvc_core.privacy.events import LEAST_SAMPLED_NOISE, Plan, PrivacyEvent, merge

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
    return _epsilon(merge(events), delta)


def cost_of_plan(
    announced: Iterable[PrivacyEvent], released: Iterable[PrivacyEvent], delta: float
) -> tuple[float, str]:
    """Epsilon of one plan of which something was released, and the name of the method.

    A plan that was left unfinished costs as much as the whole: the moment may have been chosen
    because of what was seen, and whatever was released is a function of the whole plan's
    releases.
    """
    announced, released = merge(announced), merge(released)
    if not released:
        return 0.0, "nothing was released"
    whole = epsilon_of_plan(announced, delta)
    return whole, "PLD of one plan" if announced == released else "PLD of one plan, unfinished"


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
def _epsilon(events: tuple[PrivacyEvent, ...], delta: float) -> float:
    if not events:
        return 0.0
    # Imported here: the library takes a second, and a run without privacy needs none of it.
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(
        NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=DISCRETISATION
    )
    for event in events:
        accountant.compose(dp_event(event), event.count)
    return float(accountant.get_epsilon(delta))


def dp_event(event: PrivacyEvent) -> Any:
    """One release of an event, as dp-accounting's."""
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    if event.sampling_rate >= 1.0:
        return gaussian
    return dp_accounting.PoissonSampledDpEvent(event.sampling_rate, gaussian)
