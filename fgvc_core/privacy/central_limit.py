"""A first guess at what many releases cost together: the central limit of privacy losses.

Dong, Roth and Su 2022 (https://arxiv.org/abs/1905.02383, corollary 5.4; section 5 of Bu et al.
2020, https://arxiv.org/abs/1911.11607): many sampled Gaussian releases are about as one with
mu**2 = sum of q**2 * (e**(1 / z**2) - 1). It is a limit and not a bound, on either side: nothing
is ever promised by it. It spares the search for noise most of its costly evaluations, and tells
what no noise can meet before an evaluation fills the memory.
"""

import math
from collections.abc import Callable, Iterable

from fgvc_core.privacy.events import Plan, PrivacyEvent

LARGEST_NOISE = 1e5
_SMALLEST_NOISE = 1e-2
_LARGEST_EPSILON = 1e4


def limit_epsilon(events: Iterable[PrivacyEvent], delta: float) -> float:
    """About what events cost, at most 10,000.

    Args:
        events: Any order.
        delta: 0 to 1.
    """
    square = 0.0
    for event in events:
        exponent = event.noise_multiplier**-2
        if event.sampling_rate < 1.0:
            exponent = math.expm1(min(exponent, 700.0)) * event.sampling_rate**2
        square += event.count * exponent
    mu = math.sqrt(square)
    return _decreasing(lambda epsilon: _delta_of(mu, epsilon), delta, 0.0, _LARGEST_EPSILON)


def noise_by_limit(plan: Plan, epsilon: float, delta: float) -> float:
    """About the base noise multiplier with which a plan costs ``epsilon``, 0.01 to 100,000."""
    log_noise = _decreasing(
        lambda value: limit_epsilon(plan(math.exp(value)), delta),
        epsilon,
        math.log(_SMALLEST_NOISE),
        math.log(LARGEST_NOISE),
    )
    return math.exp(log_noise)


def _delta_of(mu: float, epsilon: float) -> float:
    """Delta of one Gaussian release with mean ``mu`` (Balle and Wang 2018, theorem 8)."""
    if mu == 0.0:
        return 0.0
    first = _normal(mu / 2 - epsilon / mu)
    second = _normal(-mu / 2 - epsilon / mu)
    # In logarithms: the factor alone would overflow.
    return first - (math.exp(epsilon + math.log(second)) if second > 0.0 else 0.0)


def _normal(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2.0))


def _decreasing(function: Callable[[float], float], value: float, low: float, high: float) -> float:
    """Where a function that falls takes a value; an end of the range where it does not."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > value else (low, middle)
    return high
