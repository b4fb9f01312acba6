"""Privacy events, and the cost of a plan of events announced before its first release.

The events of one plan are composed as privacy loss distributions (PLD) by dp-accounting (Doroshenko
et al. 2022, https://arxiv.org/abs/2207.04380; pessimistic estimates, add-or-remove-one). The
coordinator may ask for a plan's releases in any order and stop early, depending on what it has
seen: the composition does not depend on the order, and fewer releases are a function of all of
them, so the bound holds. It does not hold across plans that were chosen adaptively;
:mod:`fgvc_core.privacy.odometer` adds those up, at some extra cost.

A first guess of a cost comes from the central limit theorem of privacy losses: Dong, Roth and Su
2022 (https://arxiv.org/abs/1905.02383, corollary 5.4; section 5 of Bu et al. 2020,
https://arxiv.org/abs/1911.11607). Many sampled Gaussian releases are approximately one with mu**2 =
sum of q**2 * (e**(1 / z**2) - 1). This is a limit and not a bound in either direction, so no claim
relies on it. It saves most of the expensive evaluations in the search for noise, and detects
unattainable targets before an evaluation fills the memory. Opacus's GDP accountant reports this
limit as epsilon and is not offered: it underestimates (13.88 where both PLD and PRV give 14.45 for
N = 500, B = 64, 240 steps, noise multiplier 1).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

from fgvc_core.errors import ConfigurationError, DataError

ADJACENCY = "zero-out, accounted as add-or-remove-one"
"""Neighboring data sets of every guarantee: all pictures of one unit removed."""

LEAST_SAMPLED_NOISE = 0.2
"""Least noise multiplier of sampled releases in a plan or ledger. Below it, the privacy loss
reaches so far that composition takes minutes (13 s for 100 releases at 0.2, 173 s at 0.05, on one
core), for an epsilon without meaning."""

MOST_SHARERS = 100
"""Largest number of sites that share the noise of one sum."""

MOST_RELEASES = 10_000_000
"""Largest count of one event: above any plan, and still feasible to compose."""

Purpose = Literal["centre", "class-sums", "step", "scores"]


@dataclass(frozen=True, order=True)
class PrivacyEvent:
    """``count`` releases of a Gaussian mechanism.

    purpose: What is released.
    noise_multiplier: Standard deviation of the noise over the sensitivity.
    sampling_rate: Probability that a unit takes part, 1 for all of them.
    count: Number of releases, at least 1.
    sharers: Most sites that add up to this noise, in a sum that only all of them open; 1: each
        adds all of it. A site *alone* has ``noise_multiplier / sqrt(sharers)``.
    """

    purpose: Purpose
    noise_multiplier: float
    sampling_rate: float = 1.0
    count: int = 1
    sharers: int = 1

    def as_json(self) -> dict[str, Any]:
        """Values for JSON, which :func:`read_events` reads back.

        Noise that is not shared says nothing of it, as in ledgers of versions that knew no other.
        """
        values = asdict(self)
        if self.sharers == 1:
            del values["sharers"]
        return values

    @property
    def key(self) -> tuple[Purpose, float, float, int]:
        """Events with equal keys are counted together: everything but the count."""
        return self.purpose, self.noise_multiplier, self.sampling_rate, self.sharers

    @property
    def alone(self) -> "PrivacyEvent":
        """What the event costs if every other site works with the attacker."""
        if self.sharers == 1:
            return self
        noise = self.noise_multiplier / math.sqrt(self.sharers)
        return replace(self, noise_multiplier=noise, sharers=1)


PlanShape = Callable[[float], Iterable[PrivacyEvent]]
"""A base noise multiplier -> all events of a run."""


def read_events(values: Iterable[dict[str, Any]]) -> tuple[PrivacyEvent, ...]:
    """Events from values for JSON.

    Raises:
        DataError: if they are not events, or are invalid: a rate above 1, no noise, or so little
            noise that verifying a stranger's ledger would take hours.
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
                and type(event.sharers) is int
                and 1 <= event.sharers <= MOST_SHARERS
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
    """Equal events merged, in sorted order.

    The accountant's result depends on the order of composition by about 1e-8; a fixed order makes
    it reproducible.
    """
    counts: dict[tuple[Purpose, float, float, int], int] = {}
    for event in events:
        counts[event.key] = counts.get(event.key, 0) + event.count
    return tuple(
        PrivacyEvent(purpose, noise, rate, count, sharers)
        for (purpose, noise, rate, sharers), count in sorted(counts.items())
    )


def take(event: PrivacyEvent, count: int) -> PrivacyEvent:
    """An event with another count."""
    return replace(event, count=count)


def alone(events: Iterable[PrivacyEvent]) -> tuple[PrivacyEvent, ...] | None:
    """Events as they cost if every other site works with the attacker.

    Returns:
        Merged events; None, *no promise*, if a sampled one is left with less noise than is
        accounted for.
    """
    found = merge(event.alone for event in events)
    if any(e.sampling_rate < 1 and e.noise_multiplier < LEAST_SAMPLED_NOISE for e in found):
        return None
    return found


LARGEST_NOISE = 1e5

_SMALLEST_NOISE = 1e-2

_LARGEST_EPSILON = 1e4


def limit_epsilon(events: Iterable[PrivacyEvent], delta: float) -> float:
    """Approximate epsilon of events, at most 10,000.

    Args:
        events: Events in any order.
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
    """Approximate base noise multiplier with which a plan costs ``epsilon``, 0.01 to 100,000."""
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
    # Add the logarithms: exp(epsilon) alone can overflow.
    return first - (math.exp(epsilon + math.log(second)) if second > 0.0 else 0.0)


def _normal(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2.0))


def _decreasing(function: Callable[[float], float], value: float, low: float, high: float) -> float:
    """Where a decreasing function takes a value (bisection); an end of the range if it does not."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > value else (low, middle)
    return high


DISCRETISATION = 1e-4
"""Step of the grid of the privacy loss distribution."""

TOLERANCE = 1e-3
"""Relative tolerance below a target epsilon."""


FAR_EPSILON = 100.0
"""Above it, releases over all units are composed in closed form. What one site's share of a noise
alone promises can be that weak, and the grid of the privacy loss would take gigabytes and minutes
(21 s and 1 GB for an epsilon of 205), which a stranger's recipe could ask of every site."""


def epsilon_of_plan(events: Iterable[PrivacyEvent], delta: float) -> float:
    """Epsilon of one plan whose events were all announced beforehand.

    Args:
        events: Events in any order.
        delta: 0 to 1.

    Returns:
        An upper bound on epsilon under add-or-remove-one; 0 without events.
    """
    return _epsilon(merge(events), delta)


def cost_of_plan(
    announced: Iterable[PrivacyEvent], released: Iterable[PrivacyEvent], delta: float
) -> tuple[float, str]:
    """Epsilon of one plan after some of its releases, and the name of the method.

    An unfinished plan costs as much as the whole: the time of stopping may depend on what was seen,
    and the actual releases are a function of all releases of the plan.
    """
    announced, released = merge(announced), merge(released)
    if not released:
        return 0.0, "nothing was released"
    whole = epsilon_of_plan(announced, delta)
    return whole, "PLD of one plan" if announced == released else "PLD of one plan, unfinished"


def noise_for(plan: PlanShape, epsilon: float, delta: float) -> float:
    """The smallest base noise multiplier whose plan costs at most a target.

    Args:
        plan: Base noise multiplier -> events; the cost decreases with it.
        epsilon: The target.
        delta: Delta of the whole plan.

    Returns:
        A noise multiplier whose plan costs between ``epsilon * (1 - TOLERANCE)`` and ``epsilon``,
        or less if units are sampled and the least permitted noise suffices.

    Raises:
        ConfigurationError: if no noise multiplier up to 1e5 suffices.
    """
    key = merge(plan(1.0)), epsilon, delta
    if key not in _FOUND:
        _FOUND[key] = _search(plan, epsilon, delta)
    return _FOUND[key]


_FOUND: dict[tuple[tuple[PrivacyEvent, ...], float, float], float] = {}


def _search(plan: PlanShape, epsilon: float, delta: float) -> float:
    """Guess by the central limit, then correct by the actual cost: about three evaluations."""
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
        # Fall back to a value in between if the correction leaves the bracket, or delta alone
        # covers the cost.
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
    far = _far_epsilon(events, delta)
    if far is not None:
        return far
    # Imported lazily: the library takes a second to load, and only private runs need it.
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(
        NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=DISCRETISATION
    )
    for event in events:
        accountant.compose(dp_event(event), event.count)
    return float(accountant.get_epsilon(delta))


def _far_epsilon(events: tuple[PrivacyEvent, ...], delta: float) -> float | None:
    """Epsilon of unsampled releases if it is above :data:`FAR_EPSILON`; None: compose as PLD.

    Gaussian releases compose to one with mu**2 = sum of z**-2 (Dong, Roth and Su 2022, corollary
    3.3), whose delta is known exactly; no limit is taken.
    """
    if any(event.sampling_rate < 1.0 for event in events):
        return None
    # Divided twice: a square of next to nothing would be 0.
    mu = math.hypot(*(math.sqrt(event.count) / event.noise_multiplier for event in events))
    if _delta_of(mu, FAR_EPSILON) <= delta:
        return None
    # A bound for every mu, from mu**2 / 2 of zero-concentrated privacy (Bun and Steinke 2016).
    most = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return _decreasing(lambda epsilon: _delta_of(mu, epsilon), delta, FAR_EPSILON, most)


def dp_event(event: PrivacyEvent) -> Any:
    """One release of an event, as an event of dp-accounting."""
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    if event.sampling_rate >= 1.0:
        return gaussian
    return dp_accounting.PoissonSampledDpEvent(event.sampling_rate, gaussian)
