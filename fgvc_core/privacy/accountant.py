"""Privacy events, the plan that announces them, and what they cost.

What one plan costs: dp-accounting's privacy loss distributions (PLD).

Inside one plan, announced before its first release, the events are composed as privacy
loss distributions (Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380;
pessimistic estimates, add-or-remove-one). The coordinator may ask for a plan's releases in any
order, and stop early, because of what it has seen: the events are the same whatever their order,
and fewer are a function of all of them, so the bound holds. Across plans that were chosen one
after another it does not; :mod:`fgvc_core.privacy.odometer` adds those up, and costs some more.

Opacus's GDP accountant is not offered, nor used for more than a first guess: it
under-estimates (13.88 where both
PLD and PRV give 14.45 for N = 500, B = 64, 240 steps, noise multiplier 1).

What is charged: events of known cost, and the plan that announces them all beforehand.

A first guess at what many releases cost together: the central limit of privacy losses.

Dong, Roth and Su 2022 (https://arxiv.org/abs/1905.02383, corollary 5.4; section 5 of Bu et al.
2020, https://arxiv.org/abs/1911.11607): many sampled Gaussian releases are about as one with
mu**2 = sum of q**2 * (e**(1 / z**2) - 1). It is a limit and not a bound, on either side: nothing
is ever promised by it. It spares the search for noise most of its costly evaluations, and tells
what no noise can meet before an evaluation fills the memory.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from fgvc_core.errors import ConfigurationError, DataError

ADJACENCY = "zero-out, accounted as add-or-remove-one"
"""The neighbouring data sets of every promise: one unit's pictures taken out."""

LEAST_SAMPLED_NOISE = 0.2
"""Noise multiplier below which sampled releases are neither planned nor read from a ledger:
their privacy loss would reach so far that composing it takes minutes (13 s for 100 releases at
0.2, 173 s at 0.05, on one core), at an epsilon that promises nothing."""

MOST_RELEASES = 10_000_000
"""Of one event; more than any plan announces, and few enough to be composed."""

Purpose = Literal["centre", "class-sums", "step", "scores"]


@dataclass(frozen=True, order=True)
class PrivacyEvent:
    """``count`` releases of a Gaussian mechanism.

    Attributes:
        purpose: What was released.
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        sampling_rate: Probability that a unit took part, 1 for all of them.
        count: How many such releases, at least 1.
    """

    purpose: Purpose
    noise_multiplier: float
    sampling_rate: float = 1.0
    count: int = 1

    def as_json(self) -> dict[str, Any]:
        """Plain values, from which :func:`read_events` makes an equal event."""
        return asdict(self)


PlanShape = Callable[[float], Iterable[PrivacyEvent]]
"""A base noise multiplier -> all events of a run."""


def read_events(values: Iterable[dict[str, Any]]) -> tuple[PrivacyEvent, ...]:
    """Events from plain values.

    Raises:
        DataError: if they are no events, or cannot be (a rate above 1, no noise, so little
            noise that a stranger's ledger would keep whoever verifies it busy for hours).
    """
    events = []
    for value in values:
        try:
            event = PrivacyEvent(**value)
            possible = (
                event.purpose in get_args(Purpose)
                and 0 < event.noise_multiplier < math.inf
                and 0 < event.sampling_rate <= 1
                and (event.sampling_rate == 1 or event.noise_multiplier >= LEAST_SAMPLED_NOISE)
                and type(event.count) is int
                and 1 <= event.count <= MOST_RELEASES
            )
        except TypeError:
            possible = False
        if not possible:
            raise DataError(
                f"{value!r} is no privacy event.",
                why="Its cost cannot be computed.",
                remedy="Restore the ledger from a copy; do not mend it by hand.",
            )
        events.append(event)
    return tuple(events)


def merge(events: Iterable[PrivacyEvent]) -> tuple[PrivacyEvent, ...]:
    """Equal events counted together, in an order of their own.

    The accountant's answer moves by 1e-8 with the order of composition: one order, one answer.
    """
    counts: dict[tuple[Purpose, float, float], int] = {}
    for event in events:
        key = (event.purpose, event.noise_multiplier, event.sampling_rate)
        counts[key] = counts.get(key, 0) + event.count
    return tuple(
        PrivacyEvent(purpose, noise, rate, count)
        for (purpose, noise, rate), count in sorted(counts.items())
    )


def take(event: PrivacyEvent, count: int) -> PrivacyEvent:
    """``count`` of an event's releases."""
    return PrivacyEvent(event.purpose, event.noise_multiplier, event.sampling_rate, count)


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


def noise_by_limit(plan: PlanShape, epsilon: float, delta: float) -> float:
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


def noise_for(plan: PlanShape, epsilon: float, delta: float) -> float:
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


def _search(plan: PlanShape, epsilon: float, delta: float) -> float:
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
