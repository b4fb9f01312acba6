"""One run in a ledger, as it was announced and charged, and what several of them cost together."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fgvc_core.privacy.accountant import PrivacyEvent, alone, cost_of_plan, merge, take
from fgvc_core.privacy.odometer import Rule, choose_rule, total_cost
from fgvc_core.privacy.settings import Unit


@dataclass(frozen=True)
class Plan:
    """One run in the ledger.

    Attributes:
        run: Id of the run.
        recipe_digest: Digest of the announced recipe.
        name: Name of the recipe.
        time: Time of the announcement.
        events: All planned releases.
        released: Releases reserved so far, including those charged by a recovery; equal events are
            merged.
        lost: Releases that entries cut short by a crash may have reserved; charged in addition.
        portion: Maximum number of releases per reservation.
        delta: Delta of the plan.
        unit: Protected unit.
        target: Epsilon that the recipe asked for.
        units: The site's public number of units at that time.
        reading: Digest of how units were defined at that time; empty in older ledgers.
        subject_column: Column of subject ids at that time, if any.
        recorded: Rule for adding up costs if this plan is charged first; None if the entry is of a
            version that recorded none.
        first: Whether this plan was charged before any other, so that its rule is the ledger's.
    """

    run: str
    recipe_digest: str
    name: str
    time: str
    events: tuple[PrivacyEvent, ...]
    released: tuple[PrivacyEvent, ...]
    lost: tuple[PrivacyEvent, ...]
    portion: int
    delta: float
    unit: Unit
    target: float
    units: int
    reading: str = ""
    subject_column: str | None = None
    recorded: Rule | None = None
    first: bool = False

    @property
    def rule(self) -> Rule:
        """Rule for adding up costs if this plan was charged first.

        It depends on the announcement only, never on what was released. Versions that recorded no
        rule used PLD for a single plan, and chose an order for several; their entries are treated
        in the same way.
        """
        if self.recorded is not None:
            return self.recorded
        return Rule(choose_rule(self.events, None, self.delta).orders, one_plan=True)

    @property
    def remaining(self) -> tuple[PrivacyEvent, ...]:
        """Planned events that have not been reserved."""
        used = {event.key: event.count for event in merge(self.released)}
        left = ((event, event.count - used.get(event.key, 0)) for event in merge(self.events))
        return tuple(take(event, count) for event, count in left if count > 0)

    def cost(self) -> tuple[float, str]:
        """Epsilon of this run alone at its own delta, and the method."""
        return cost_of_plan(*self.charged, self.delta)

    @property
    def is_shared(self) -> bool:
        """Whether sites share the noise of any of its events."""
        return any(event.sharers > 1 for event in (*self.events, *self.released, *self.lost))

    def cost_alone(self) -> float:
        """Epsilon of this run at its own delta if every other site works with the attacker.

        Infinite if nothing is promised then.
        """
        plan = self.alone()
        return math.inf if plan is None else plan.cost()[0]

    def alone(self) -> "Plan | None":
        """The plan as it costs if every other site works with the attacker; None: no promise.

        Its rule follows from the announcement, as the other one does.
        """
        if not self.is_shared:
            return self
        events, released, lost = (alone(e) for e in (self.events, self.released, self.lost))
        if events is None or released is None or lost is None:
            return None
        return replace(self, events=events, released=released, lost=lost, recorded=None)

    @property
    def charged(self) -> tuple[tuple[PrivacyEvent, ...], tuple[PrivacyEvent, ...]]:
        """(announced, released) events, both including what crashes may have cost."""
        return (*self.events, *self.lost), (*self.released, *self.lost)

    @property
    def priced(self) -> tuple[PrivacyEvent, ...]:
        """Events behind :meth:`cost`: the whole plan, or none before the first charge."""
        announced, released = self.charged
        return merge(announced) if released else ()

    def holds(self, event: PrivacyEvent) -> bool:
        """Whether an event can still be reserved in full."""
        return any(event.key == e.key and event.count <= e.count for e in self.remaining)

    def having_released(self, event: PrivacyEvent) -> "Plan":
        """Plan with one more event reserved."""
        return replace(self, released=merge((*self.released, event)))


def rule_of(plans: Iterable[Plan]) -> Rule | None:
    """Rule for adding up a ledger's costs; None before the first charge."""
    return next((plan.rule for plan in plans if plan.first), None)


def total_of(
    plans: Iterable[Plan],
    delta: float,
    extra: Iterable[PrivacyEvent] = (),
    rule: Rule | None = None,
) -> tuple[float, str]:
    """Total epsilon of all plans at a delta, and the method.

    Args:
        plans: Plans with their releases so far.
        delta: Delta of the total.
        extra: Events of one more plan, counted as released in full.
        rule: Rule chosen for ``extra``, used if nothing was charged before.
    """
    plans, extra = list(plans), tuple(extra)
    settled = rule_of(plans)
    if settled is not None:
        first = next(plan.charged for plan in plans if plan.first)
        others = [plan.charged for plan in plans if not plan.first]
        return total_cost(first, [*others, (extra, extra)], settled, delta)
    if not extra:
        return 0.0, "nothing was released"
    return total_cost((extra, extra), [], rule or choose_rule(extra, None, delta), delta)


NO_PROMISE = "no promise"
"""Method of an infinite total: what is left of the noise is too little to account for."""


def total_alone(
    plans: Iterable[Plan], delta: float, extra: Iterable[PrivacyEvent] = ()
) -> tuple[float, str]:
    """As :func:`total_of`, if every other site works with the attacker.

    Args:
        plans: Plans with their releases so far.
        delta: Delta of the total.
        extra: Events of one more plan, counted as released in full.

    Returns:
        Total epsilon, and the method; infinite and ``no promise`` if a charged release, or an extra
        one, is left with too little noise.
    """
    found, further = [], alone(extra)
    for plan in plans:
        bare = plan.alone()
        if bare is not None:
            found.append(bare)
        elif plan.charged[1]:
            return math.inf, NO_PROMISE
    if further is None:
        return math.inf, NO_PROMISE
    rule = Rule(choose_rule(further, None, delta).orders, one_plan=True) if further else None
    return total_of(found, delta, further, rule)


def covers(one: PrivacyEvent, other: PrivacyEvent) -> bool:
    """Whether one event costs at least as much as the other under any composition, also alone."""
    return (
        one.noise_multiplier <= other.noise_multiplier
        and one.alone.noise_multiplier <= other.alone.noise_multiplier
        and one.sampling_rate >= other.sampling_rate
        and one.count >= other.count
    )
