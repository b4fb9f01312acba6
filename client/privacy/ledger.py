"""What this site has spent: plans announced, releases reserved, replies sent.

Every cost is on the disk before the work that it is for begins. The ledger belongs to the
data: its first entry names where they are, and no plan is charged to it for others.

Kinds of entries:

=========  ====================================================================
founded    whose ledger, over which data
announced  a run's whole plan: events, delta, unit, public number of units
approved   a person at the site has said yes to a run
reserved   one release of a plan, before the work for it
sent       a reply that may leave from now on: what is in it, how large
refused    a run or a request that was turned down, and why
torn       a crash cut an entry short; what it may have reserved is charged
audited    the site audited itself; nothing left
=========  ====================================================================
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from client.privacy.chain import TORN, Chain, Entry
from fgvc_core.errors import PeerError, PolicyRefusal
from fgvc_core.privacy.accountant import cost_of_plan, total_cost
from fgvc_core.privacy.events import PrivacyEvent, merge, read_events, take
from fgvc_core.privacy.settings import Unit

FILE = "ledger.jsonl"


@dataclass(frozen=True)
class Plan:
    """One run as the ledger knows it.

    Attributes:
        run: Its id.
        recipe_digest: Of the announced recipe.
        name: The recipe's name.
        time: When it was announced.
        events: All that it was to release.
        released: What was reserved of it so far.
        lost: What entries that a crash cut short may have reserved; charged on top.
        portion: Most releases that one reservation takes.
        delta: Of the plan.
        unit: What is protected.
        target: The epsilon that the recipe asked for.
        units: The site's public number of units then.
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

    @property
    def remaining(self) -> tuple[PrivacyEvent, ...]:
        """What of the plan has not been reserved."""
        used: dict[tuple[str, float, float], int] = {}
        for event in self.released:
            key = (event.purpose, event.noise_multiplier, event.sampling_rate)
            used[key] = used.get(key, 0) + event.count
        left = []
        for event in merge(self.events):
            key = (event.purpose, event.noise_multiplier, event.sampling_rate)
            count = event.count - used.get(key, 0)
            if count > 0:
                left.append(take(event, count))
        return tuple(left)

    def cost(self) -> tuple[float, str]:
        """Epsilon of this run alone at its own delta, and the method."""
        return cost_of_plan(*self.charged, self.delta)

    @property
    def charged(self) -> tuple[tuple[PrivacyEvent, ...], tuple[PrivacyEvent, ...]]:
        """(announced, released), with what crashes may have cost in both."""
        return (*self.events, *self.lost), (*self.released, *self.lost)


class Ledger:
    """The ledger of one site.

    Args:
        home: The site's home.
        data: What the ledger is bound to; see :func:`client.site.Site.data_binding`.
        site: The site's name.
    """

    def __init__(self, home: Path, data: str, site: str) -> None:
        self._chain = _chain(home / FILE)
        self._data = data
        self._site = site

    @property
    def path(self) -> Path:
        """The file."""
        return self._chain.path

    def entries(self) -> Sequence[Entry]:
        """All entries, verified."""
        return self._chain.entries()

    def head(self) -> tuple[int, str]:
        """How many entries there are, and the last one's hash."""
        entries = self._chain.entries()
        return len(entries), self._chain.head

    def holds(self, head: str) -> bool:
        """Whether an entry with this hash is in the chain."""
        return any(entry.hash == head for entry in self._chain.entries())

    def plans(self) -> list[Plan]:
        """All runs announced, in their order."""
        return plans_of(self._chain.entries())

    def plan(self, run: str) -> Plan | None:
        """One run's plan."""
        return next((plan for plan in self.plans() if plan.run == run), None)

    def total(self, delta: float, extra: Iterable[PrivacyEvent] = ()) -> tuple[float, str]:
        """Epsilon of everything at a delta, and the method.

        Args:
            delta: Of the whole.
            extra: The events of one more plan, as if it had been carried out.
        """
        return total_of(self.plans(), delta, extra)

    def announce(
        self, run: str, recipe_digest: str, events: Iterable[PrivacyEvent], **terms: Any
    ) -> None:
        """Write down a run's plan; doing so costs nothing yet, and twice is once.

        Raises:
            PolicyRefusal: if the same run was announced with another plan.
        """
        values = {
            "run": run,
            "recipe_digest": recipe_digest,
            "events": [event.as_json() for event in merge(events)],
            **terms,
        }
        with self._writing() as chain:
            self._check_binding(chain)
            for entry in _of(chain.entries(), "announced"):
                if entry.values["run"] != run:
                    continue
                if {**entry.values, "policy": ""} != {**values, "policy": ""}:
                    raise PolicyRefusal(
                        f"Run '{run}' was announced before with another plan.",
                        why="A plan is fixed before its first release.",
                        remedy="Start a new run.",
                    )
                return
            chain.append("announced", values)

    def reserve(
        self, run: str, round_: int, request: str, event: PrivacyEvent, cap: tuple[float, float]
    ) -> None:
        """Charge one release before the work for it.

        The same request is charged once, however often it is repeated.

        Args:
            run: Which plan.
            round_: Which round, for the records.
            request: Digest of the request without its nonce.
            event: What will be released.
            cap: (epsilon, delta) that the whole ledger must not exceed.

        Raises:
            PolicyRefusal: if the plan does not have the event (any more), the round was
                answered for another request, or the cap would be exceeded.
            OSError: if the disk is full; then nothing may be released.
        """
        with self._writing() as chain:
            self._check_binding(chain)
            plan = self.plan(run)
            if plan is None:
                raise PeerError(f"Run '{run}' was never announced to this site.")
            for entry in _of(chain.entries(), "reserved"):
                values = entry.values
                if values["run"] != run:
                    continue
                if values["request"] == request:
                    return
                if (values["round"], values["event"]["purpose"]) == (round_, event.purpose):
                    raise PolicyRefusal(
                        f"Round {round_} of run '{run}' was answered for another request.",
                        why="Each release of a plan is made once.",
                        remedy="Start a new run.",
                    )
            if not _fits(event, plan.remaining):
                raise PolicyRefusal(
                    f"Run '{run}' has no '{event.purpose}' left in its plan.",
                    why="A site releases what was announced, and nothing beyond.",
                    remedy="Start a new run.",
                )
            epsilon, delta = cap
            after = _with(self.plans(), run, event)
            total, _ = total_of(after, delta)
            if total > epsilon:
                raise PolicyRefusal(
                    f"policy.epsilon_cap = {epsilon:g}: this release would bring the total to "
                    f"{total:.4g}.",
                    remedy="The budget of these data is used up.",
                )
            chain.append(
                "reserved",
                {"run": run, "round": round_, "request": request, "event": event.as_json()},
            )

    def reserved(self, run: str, request: str) -> bool:
        """Whether a request's release is charged."""
        return any(
            entry.values["run"] == run and entry.values["request"] == request
            for entry in _of(self.entries(), "reserved")
        )

    def was_sent(self, run: str, request: str) -> bool:
        """Whether a payload for this request may have left."""
        return any(
            entry.values["run"] == run and entry.values.get("request") == request
            for entry in _of(self.entries(), "sent")
        )

    def note(self, kind: str, values: dict[str, Any] | Callable[[int], dict[str, Any]]) -> Entry:
        """Write an entry that charges nothing.

        Args:
            kind: What it says.
            values: The entry's, or what makes them of its number.
        """
        with self._writing() as chain:
            made = values(len(chain.entries())) if callable(values) else values
            return chain.append(kind, made)

    def _check_binding(self, chain: Chain) -> None:
        *_, founded = _of(chain.entries(), "founded")
        if founded.values["data"] == self._data:
            return
        if any(_of(chain.entries(), "announced")):
            raise PolicyRefusal(
                "The ledger belongs to other data than those this site names now.",
                why="What was spent on one unit cannot be told from another's.",
                remedy="Restore data.path in site.toml, or make a home of its own for the "
                "other data.",
            )
        # Nothing was ever charged to it: it may begin again over these data.
        chain.append("founded", {"site": self._site, "data": self._data})

    def _writing(self) -> "_Writing":
        return _Writing(self._chain, self._data, self._site)


class _Writing:
    """The writer's lock, with the ledger founded and its torn end charged."""

    def __init__(self, chain: Chain, data: str, site: str) -> None:
        self._context = chain.writing()
        self._data = data
        self._site = site

    def __enter__(self) -> Chain:
        chain = self._context.__enter__()
        try:
            entries = chain.entries()
            if not entries or all(entry.kind == TORN for entry in entries):
                chain.append("founded", {"site": self._site, "data": self._data})
        except BaseException as error:
            self._context.__exit__(type(error), error, error.__traceback__)
            raise
        return chain

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)


_CHAINS: dict[Path, Chain] = {}


def _chain(path: Path) -> Chain:
    # A process that serves a site again reads only what was added since.
    path = path.resolve()
    if path not in _CHAINS or not path.exists():
        _CHAINS[path] = Chain(path)
    return _CHAINS[path]


def plans_of(entries: Iterable[Entry]) -> list[Plan]:
    """All runs announced in these entries, with what was reserved of each."""
    plans: dict[str, Plan] = {}
    for entry in entries:
        values = entry.values
        if entry.kind == "announced":
            plans[values["run"]] = Plan(
                run=values["run"],
                recipe_digest=values["recipe_digest"],
                name=values["name"],
                time=entry.time,
                events=read_events(values["events"]),
                released=(),
                lost=(),
                portion=values["portion"],
                delta=values["delta"],
                unit=values["unit"],
                target=values["target"],
                units=values["units"],
            )
        elif entry.kind == "reserved":
            plan = plans[values["run"]]
            plans[plan.run] = replace(
                plan, released=(*plan.released, *read_events([values["event"]]))
            )
        elif entry.kind == TORN:
            # It may have reserved a release of any open plan: the dearest left is charged.
            for plan in list(plans.values()):
                if plan.remaining:
                    dearest = max(plan.remaining, key=_price)
                    lost = take(dearest, min(dearest.count, plan.portion))
                    plans[plan.run] = replace(plan, lost=(*plan.lost, lost))
    return list(plans.values())


def total_of(
    plans: Iterable[Plan], delta: float, extra: Iterable[PrivacyEvent] = ()
) -> tuple[float, str]:
    """Epsilon of all plans together at a delta; see :meth:`Ledger.total`."""
    pairs: list[tuple[Iterable[PrivacyEvent], Iterable[PrivacyEvent]]]
    pairs = [plan.charged for plan in plans]
    extra = tuple(extra)
    return total_cost([*pairs, (extra, extra)], delta)


def _with(plans: list[Plan], run: str, event: PrivacyEvent) -> list[Plan]:
    return [replace(p, released=(*p.released, event)) if p.run == run else p for p in plans]


def _price(event: PrivacyEvent) -> float:
    return event.count * (event.sampling_rate / event.noise_multiplier) ** 2


def _fits(event: PrivacyEvent, remaining: tuple[PrivacyEvent, ...]) -> bool:
    return any(
        (event.purpose, event.noise_multiplier, event.sampling_rate)
        == (left.purpose, left.noise_multiplier, left.sampling_rate)
        and event.count <= left.count
        for left in remaining
    )


def _of(entries: Iterable[Entry], kind: str) -> Iterable[Entry]:
    return (entry for entry in entries if entry.kind == kind)
