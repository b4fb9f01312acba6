"""In-memory state of a ledger, updated entry by entry: plans, charges and replies.

Nothing here reads or writes files. Adding an entry takes constant time, however long the ledger is.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgvc_core.errors import DataError
from fgvc_core.privacy.accountant import PrivacyEvent, merge, read_events, take
from fgvc_core.privacy.odometer import Rule, all_orders
from fgvc_core.privacy.settings import Unit
from fgvc_core.protocol.stages import ROLL_CALL
from fgvc_core.secure.ready import Place
from fieldmark.client.privacy.chain import RESTORE, TORN, Entry
from fieldmark.client.privacy.plans import Plan, covers


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
            others += [other for _, other in possible[:at] if not covers(event, other)]
            if not any(covers(other, event) for other in others):
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
