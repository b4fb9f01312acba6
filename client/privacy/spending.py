"""In-memory state of a ledger, updated entry by entry: plans, charges and replies.

Nothing here reads or writes files. Adding an entry takes constant time, however long the ledger is.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgvc_core.errors import DataError
from fgvc_core.privacy.accountant import (
    PrivacyEvent,
    alone,
    cost_of_plan,
    merge,
    read_events,
    take,
)
from fgvc_core.privacy.odometer import Rule, all_orders, choose_rule, total_cost
from fgvc_core.privacy.settings import Unit
from fgvc_core.protocol.stages import ROLL_CALL
from fgvc_core.secure.ready import Place
from fieldmark.client.privacy.chain import RESTORE, TORN, Entry


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


class Spending:
    """Plans, charges and replies of all entries added so far."""

    def __init__(self) -> None:
        self.data = ""
        """Digest that the ledger is bound to; empty before it is founded."""
        self.unprotected = 0
        """Number of replies computed from the pictures that left without differential privacy."""
        self._plans: dict[str, Plan] = {}
        self._reserved: dict[tuple[str, str], PrivacyEvent] = {}
        self._rounds: set[tuple[str, int, str]] = set()
        self._sent: set[tuple[str, str]] = set()
        self._ready: dict[Place, tuple[str, str]] = {}
        self._views: dict[Place, str] = {}
        self._approved: set[tuple[str, str]] = set()
        self._approved_runs: set[str] = set()
        self._declined: set[tuple[str, str]] = set()
        self._roll_calls: dict[str, str] = {}
        self._hashes: set[str] = set()
        self.ahead = 0
        """Entries by which a recovered ledger counts longer than its file."""
        self._announced: dict[str, dict[str, Any]] = {}

    def add(self, entry: Entry) -> None:
        """Add the next entry.

        Raises:
            DataError: if the entry is malformed; it was not added.
        """
        if entry.kind == "founded":
            self.data = _read(_Founded, entry).data
        elif entry.kind == "announced":
            self._announce(entry)
        elif entry.kind == "reserved":
            self._reserve(entry)
        elif entry.kind == "approved":
            approved = _read(_Approved, entry)
            self._approved.add((approved.run, approved.recipe_digest))
            self._approved_runs.add(approved.run)
            self._declined.discard((approved.run, approved.recipe_digest))
        elif entry.kind == "declined":
            declined = _read(_Approved, entry)
            self._declined.add((declined.run, declined.recipe_digest))
        elif entry.kind == "sent":
            self._send(_read(_Sent, entry))
        elif entry.kind == "ready":
            ready = _read(_Ready, entry)
            # The first one of a place counts, as the ledger writes no second.
            self._ready.setdefault(ready.place, (ready.ctx, ready.key))
        elif entry.kind == "view":
            view = _read(_View, entry)
            self._views.setdefault(view.place, view.view)
        elif entry.kind == TORN:
            self._tear()
        elif entry.kind == "recovered":
            self._recover(entry)
        self._hashes.add(entry.hash)

    def plans(self) -> list[Plan]:
        """Plans of all announced runs, in order."""
        return list(self._plans.values())

    def plan(self, run: str) -> Plan | None:
        """Plan of a run, or None."""
        return self._plans.get(run)

    def announced(self, run: str) -> dict[str, Any] | None:
        """Values of a run's announcement."""
        return self._announced.get(run)

    def reservation(self, run: str, request: str) -> PrivacyEvent | None:
        """Event charged for a request, or None."""
        return self._reserved.get((run, request))

    def was_answered(self, run: str, round_: int, purpose: str) -> bool:
        """Whether a round's release for this purpose was charged, for any request."""
        return (run, round_, purpose) in self._rounds

    def was_sent(self, run: str, request: str) -> bool:
        """Whether a reply to this request may have left."""
        return (run, request) in self._sent

    def ready_at(self, place: Place) -> tuple[str, str] | None:
        """(context, fresh key) with which the site said at a place that it is ready, or None."""
        return self._ready.get(place)

    def view_at(self, place: Place) -> str | None:
        """Digest (hex) of the one set of sites that was answered at a place; None: none yet."""
        return self._views.get(place)

    def is_approved(self, run: str, recipe_digest: str) -> bool:
        """Whether a person has approved a run with this recipe, and not declined it since."""
        key = run, recipe_digest
        return key in self._approved and key not in self._declined

    def is_declined(self, run: str, recipe_digest: str) -> bool:
        """Whether a person has declined a run with this recipe, and not approved it since."""
        return (run, recipe_digest) in self._declined

    def was_approved(self, run: str) -> bool:
        """Whether a person has approved a run, with whichever recipe."""
        return run in self._approved_runs

    def was_decided(self, run: str) -> bool:
        """Whether a person has approved or declined a run, with whichever recipe."""
        return run in self._approved_runs or any(run == declined for declined, _ in self._declined)

    def was_turned_down(self, run: str) -> bool:
        """Whether the policy refused a run at its last roll call."""
        return self._roll_calls.get(run) == "refused-policy"

    def holds(self, head: str) -> bool:
        """Whether an entry has this hash."""
        return head in self._hashes

    def _announce(self, entry: Entry) -> None:
        values = _read(_Announced, entry)
        if values.run in self._plans:
            raise _malformed(entry, "its run was announced before")
        self._plans[values.run] = Plan(
            time=entry.time,
            events=read_events(values.events),
            released=(),
            lost=(),
            recorded=_rule_of(entry, values.rule),
            **values.model_dump(exclude={"events", "rule"}),
        )
        self._announced[values.run] = entry.values

    def _reserve(self, entry: Entry) -> None:
        values = _read(_Reserved, entry)
        (event,) = read_events([values.event])
        plan = self._plans.get(values.run)
        if plan is None:
            raise _malformed(entry, "its run was never announced")
        self._plans[values.run] = plan.having_released(event)
        self._settle_first()
        self._reserved[values.run, values.request] = event
        self._rounds.add((values.run, values.round, event.purpose))

    def _recover(self, entry: Entry) -> None:
        values = _read(_Recovered, entry)
        charged = [(run.run, read_events(run.events)) for run in values.runs]
        for run, events in charged:
            plan = self._plans.get(run)
            if plan is None:
                raise _malformed(entry, f"its run '{run}' was never announced")
            self._plans[run] = replace(plan, released=merge((*plan.released, *events)))
        self._settle_first()
        self._hashes.update(values.heads)
        self.unprotected += values.unprotected
        # From this entry on, the ledger counts as longer than anybody has seen it.
        self.ahead = max(self.ahead, values.length - entry.number)

    def _send(self, values: "_Sent") -> None:
        self._sent.add((values.run, values.request))
        if values.what == ROLL_CALL.kind:
            self._roll_calls[values.run] = values.code
        told = values.code == "ok" and values.what != ROLL_CALL.kind
        self.unprotected += told and not values.protected

    def _tear(self) -> None:
        """Charge for a torn line, which may have reserved a release of any open plan."""
        possible = [
            (plan.run, take(event, min(event.count, plan.portion)))
            for plan in self._plans.values()
            for event in plan.remaining
        ]
        # Only one of them was reserved. An event that never costs more than another need not be
        # charged beside it; of equal events the latest is charged.
        for at, (run, event) in enumerate(possible):
            others = [other for _, other in possible[at + 1 :]]
            others += [other for _, other in possible[:at] if not _covers(event, other)]
            if not any(_covers(other, event) for other in others):
                plan = self._plans[run]
                self._plans[run] = replace(plan, lost=merge((*plan.lost, event)))
        self._settle_first()

    def _settle_first(self) -> None:
        """Mark the first charged plan, whose rule the ledger keeps for good."""
        if any(plan.first for plan in self._plans.values()):
            return
        run = next((plan.run for plan in self._plans.values() if plan.charged[1]), None)
        if run is not None:
            self._plans[run] = replace(self._plans[run], first=True)


def plans_of(entries: Iterable[Entry]) -> list[Plan]:
    """Plans of all runs announced in these entries, with their reserved releases.

    Raises:
        DataError: if an entry is malformed.
    """
    spending = Spending()
    for entry in entries:
        spending.add(entry)
    return spending.plans()


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


class _Values(BaseModel):
    """Values of an entry; unknown keys from other versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Founded(_Values):
    data: str


class _Rule(_Values):
    orders: list[float] = Field(min_length=1, max_length=64)
    one_plan: bool


class _Announced(_Values):
    run: str
    recipe_digest: str
    name: str
    events: list[dict[str, Any]]
    portion: int = Field(ge=1)
    delta: float = Field(gt=0.0, lt=1.0)
    unit: Unit
    target: float
    units: int = Field(ge=0)
    reading: str = ""
    subject_column: str | None = None
    rule: _Rule | None = None


class _Reserved(_Values):
    run: str
    round: int
    request: str
    event: dict[str, Any]


class _RecoveredRun(_Values):
    run: str
    events: list[dict[str, Any]]


class _Recovered(_Values):
    length: int = Field(ge=0)
    heads: list[str]
    runs: list[_RecoveredRun]
    unprotected: int = Field(ge=0)


class _Approved(_Values):
    run: str
    recipe_digest: str


class _Sent(_Values):
    run: str
    request: str
    what: str
    code: str
    protected: bool


class _AtPlace(_Values):
    run: str
    round: int
    phase: str
    what: str

    @property
    def place(self) -> Place:
        """Where in the run."""
        return Place(self.run, self.round, self.phase, self.what)


class _Ready(_AtPlace):
    ctx: str
    key: str


class _View(_AtPlace):
    view: str


_Kind = TypeVar("_Kind", bound=_Values)


def _read(kind: type[_Kind], entry: Entry) -> _Kind:
    try:
        return kind.model_validate(entry.values)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _malformed(entry, f"'{where}': {first['msg']}") from None


def _rule_of(entry: Entry, values: "_Rule | None") -> Rule | None:
    if values is None:
        return None
    if not set(values.orders) <= set(all_orders()):
        raise _malformed(entry, "'rule.orders' has an order that costs are not computed at")
    return Rule(tuple(values.orders), values.one_plan)


def _malformed(entry: Entry, what: str) -> DataError:
    return DataError(
        f"The ledger's entry {entry.number} ('{entry.kind}') cannot be: {what}.",
        why="What was spent can no longer be told.",
        remedy=RESTORE,
    )


def _covers(one: PrivacyEvent, other: PrivacyEvent) -> bool:
    """Whether one event costs at least as much as the other under any composition, also alone."""
    return (
        one.noise_multiplier <= other.noise_multiplier
        and one.alone.noise_multiplier <= other.alone.noise_multiplier
        and one.sampling_rate >= other.sampling_rate
        and one.count >= other.count
    )
