"""What a ledger's entries say, kept up entry by entry: plans, charges, and what was answered.

Nothing here reads or writes a file. A round adds a few entries, and adding one costs the
same however many there are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgvc_core.errors import DataError
from fgvc_core.privacy.accountant import (
    PrivacyEvent,
    Purpose,
    cost_of_plan,
    merge,
    read_events,
    take,
)
from fgvc_core.privacy.odometer import Rule, all_orders, choose_rule, total_cost
from fgvc_core.privacy.settings import Unit
from fgvc_core.protocol.stages import ROLL_CALL
from fieldmark.client.privacy.chain import RESTORE, TORN, Entry

Key = tuple[Purpose, float, float]
"""Purpose, noise multiplier, sampling rate: events with one key are counted together."""


@dataclass(frozen=True)
class Plan:
    """One run as the ledger knows it.

    Attributes:
        run: Its id.
        recipe_digest: Of the announced recipe.
        name: The recipe's name.
        time: When it was announced.
        events: All that it was to release.
        released: What was reserved of it so far, equal events counted together; with what a
            recovery has charged.
        lost: What entries that a crash cut short may have reserved; charged on top.
        portion: Most releases that one reservation takes.
        delta: Of the plan.
        unit: What is protected.
        target: The epsilon that the recipe asked for.
        units: The site's public number of units then.
        reading: Digest of how the site told its units apart then; empty in older ledgers.
        subject_column: The column that said who is a subject then, if one did.
        recorded: How the ledger adds up its costs if this plan is charged first; None: the
            entry is of a version that wrote down no such rule.
        first: Whether this plan was charged before any other: its rule is the ledger's.
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
        """How costs are added up where this plan was charged first.

        It follows from the announcement, never from what was released. Earlier versions gave
        one plan's cost by PLD, and chose an order when there were more: so do we for theirs.
        """
        if self.recorded is not None:
            return self.recorded
        return Rule(choose_rule(self.events, None, self.delta).orders, one_plan=True)

    @property
    def remaining(self) -> tuple[PrivacyEvent, ...]:
        """What of the plan has not been reserved."""
        used = {_key(event): event.count for event in merge(self.released)}
        left = ((event, event.count - used.get(_key(event), 0)) for event in merge(self.events))
        return tuple(take(event, count) for event, count in left if count > 0)

    def cost(self) -> tuple[float, str]:
        """Epsilon of this run alone at its own delta, and the method."""
        return cost_of_plan(*self.charged, self.delta)

    @property
    def charged(self) -> tuple[tuple[PrivacyEvent, ...], tuple[PrivacyEvent, ...]]:
        """(announced, released), with what crashes may have cost in both."""
        return (*self.events, *self.lost), (*self.released, *self.lost)

    @property
    def priced(self) -> tuple[PrivacyEvent, ...]:
        """The events that :meth:`cost` is the epsilon of: all or, before any charge, none."""
        announced, released = self.charged
        return merge(announced) if released else ()

    def holds(self, event: PrivacyEvent) -> bool:
        """Whether all of an event is still to be reserved."""
        return any(_key(event) == _key(e) and event.count <= e.count for e in self.remaining)

    def having_released(self, event: PrivacyEvent) -> "Plan":
        """The plan with one more event reserved."""
        return replace(self, released=merge((*self.released, event)))


class Spending:
    """Plans, charges and replies of all entries so far."""

    def __init__(self) -> None:
        self.data = ""
        """What the ledger is bound to; empty before it is founded."""
        self.unprotected = 0
        """How many replies with something computed from the pictures left without
        differential privacy."""
        self._plans: dict[str, Plan] = {}
        self._reserved: dict[tuple[str, str], PrivacyEvent] = {}
        self._rounds: set[tuple[str, int, str]] = set()
        self._sent: set[tuple[str, str]] = set()
        self._approved: set[tuple[str, str]] = set()
        self._hashes: set[str] = set()
        self.ahead = 0
        """By how many entries the ledger is longer than its file, since it was recovered."""
        self._announced: dict[str, dict[str, Any]] = {}

    def add(self, entry: Entry) -> None:
        """Take in one more entry.

        Raises:
            DataError: if it is not what its kind has to be; nothing was taken in then.
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
        elif entry.kind == "sent":
            self._send(_read(_Sent, entry))
        elif entry.kind == TORN:
            self._tear()
        elif entry.kind == "recovered":
            self._recover(entry)
        self._hashes.add(entry.hash)

    def plans(self) -> list[Plan]:
        """All runs announced, in their order."""
        return list(self._plans.values())

    def plan(self, run: str) -> Plan | None:
        """One run's plan."""
        return self._plans.get(run)

    def announced(self, run: str) -> dict[str, Any] | None:
        """The values of a run's announcement."""
        return self._announced.get(run)

    def reservation(self, run: str, request: str) -> PrivacyEvent | None:
        """What was charged for a request."""
        return self._reserved.get((run, request))

    def was_answered(self, run: str, round_: int, purpose: str) -> bool:
        """Whether a round's release for this purpose is charged, for whichever request."""
        return (run, round_, purpose) in self._rounds

    def was_sent(self, run: str, request: str) -> bool:
        """Whether a payload for this request may have left."""
        return (run, request) in self._sent

    def is_approved(self, run: str, recipe_digest: str) -> bool:
        """Whether a person has said yes to a run with this recipe."""
        return (run, recipe_digest) in self._approved

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
        # Longer than anybody has seen it, from this entry on.
        self.ahead = max(self.ahead, values.length - entry.number)

    def _send(self, values: "_Sent") -> None:
        self._sent.add((values.run, values.request))
        told = values.code == "ok" and values.what != ROLL_CALL.kind
        self.unprotected += told and not values.protected

    def _tear(self) -> None:
        """The torn line may have reserved a release of any open plan."""
        possible = [
            (plan.run, take(event, min(event.count, plan.portion)))
            for plan in self._plans.values()
            for event in plan.remaining
        ]
        # It was one of them. What costs no more than another under every accountant need not
        # be charged beside it; of equals the latest is.
        for at, (run, event) in enumerate(possible):
            others = [other for _, other in possible[at + 1 :]]
            others += [other for _, other in possible[:at] if not _covers(event, other)]
            if not any(_covers(other, event) for other in others):
                plan = self._plans[run]
                self._plans[run] = replace(plan, lost=merge((*plan.lost, event)))
        self._settle_first()

    def _settle_first(self) -> None:
        """The first charge settles whose rule the ledger keeps, for good."""
        if any(plan.first for plan in self._plans.values()):
            return
        run = next((plan.run for plan in self._plans.values() if plan.charged[1]), None)
        if run is not None:
            self._plans[run] = replace(self._plans[run], first=True)


def plans_of(entries: Iterable[Entry]) -> list[Plan]:
    """All runs announced in these entries, with what was reserved of each.

    Raises:
        DataError: if an entry is not what its kind has to be.
    """
    spending = Spending()
    for entry in entries:
        spending.add(entry)
    return spending.plans()


def rule_of(plans: Iterable[Plan]) -> Rule | None:
    """How a ledger adds up its costs; None while nothing was charged and it is still open."""
    return next((plan.rule for plan in plans if plan.first), None)


def total_of(
    plans: Iterable[Plan],
    delta: float,
    extra: Iterable[PrivacyEvent] = (),
    rule: Rule | None = None,
) -> tuple[float, str]:
    """Epsilon of all plans together at a delta, and the method.

    Args:
        plans: As far as each was carried out.
        delta: Of the whole.
        extra: The events of one more plan, as if it had been carried out.
        rule: With ``extra``: what was chosen for it, where nothing was charged before.
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


class _Values(BaseModel):
    """An entry's values; what other versions add is left alone."""

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


def _key(event: PrivacyEvent) -> Key:
    return event.purpose, event.noise_multiplier, event.sampling_rate


def _covers(one: PrivacyEvent, other: PrivacyEvent) -> bool:
    """Whether one costs at least as much as the other, whatever it is composed with."""
    return (
        one.noise_multiplier <= other.noise_multiplier
        and one.sampling_rate >= other.sampling_rate
        and one.count >= other.count
    )
