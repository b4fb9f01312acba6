"""What this site has spent: plans announced, releases reserved, replies sent.

Every cost is on the disk before the work that it is for begins. The ledger belongs to the
data: its first entry names where they are, and no plan is charged to it for others.

Kinds of entries:

=========  ====================================================================
founded    whose ledger, over which data
announced  a run's whole plan: events, delta, unit, public number of units, and how costs are
           added up from now on if it is the first to be charged
approved   a person at the site has said yes to a run
reserved   one release of a plan, before the work for it
sent       a reply that may leave from now on: what is in it, how large
refused    a run or a request that was turned down, and why
torn       a crash cut an entry short; what it may have reserved is charged
recovered  entries were lost with a disk; what they may have reserved is charged
key        this site has another key from now on
audited    the site audited itself; nothing left
=========  ====================================================================
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fgvc_core.errors import DataError, PeerError, PolicyRefusal
from fgvc_core.privacy.accountant import PrivacyEvent, merge
from fgvc_core.privacy.odometer import Rule
from fgvc_core.privacy.settings import Unit
from fieldmark.client.privacy.chain import RESTORE, TORN, Chain, Entry
from fieldmark.client.privacy.spending import Plan, Spending, plans_of, rule_of, total_of

__all__ = ["FILE", "Ledger", "Plan", "plans_of", "rule_of", "total_of"]

FILE = "ledger.jsonl"


class Ledger:
    """The ledger of one site.

    Args:
        home: The site's home.
        data: What the ledger is bound to; see :func:`fieldmark.client.site.Site.data_binding`.
        site: The site's name.
    """

    def __init__(self, home: Path, data: str, site: str) -> None:
        self._open = _opened(home / FILE)
        self._data = data
        self._site = site

    @property
    def path(self) -> Path:
        """The file."""
        return self._open.chain.path

    def entries(self) -> Sequence[Entry]:
        """All entries, verified."""
        with self._open.reading():
            return tuple(self._open.chain.entries())

    def head(self) -> tuple[int, str]:
        """How many entries there are, and the last one's hash.

        A recovered ledger counts on from the longest that anybody has seen of it.
        """
        with self._open.reading() as spending:
            return len(self._open.chain.entries()) + spending.ahead, self._open.chain.head

    def length_with(self, number: int) -> int:
        """How many entries there are once the one with this number is the last."""
        with self._open.reading() as spending:
            return number + 1 + spending.ahead

    def holds(self, head: str) -> bool:
        """Whether an entry with this hash is in the chain."""
        with self._open.reading() as spending:
            return spending.holds(head)

    def plans(self) -> list[Plan]:
        """All runs announced, in their order."""
        with self._open.reading() as spending:
            return spending.plans()

    def plan(self, run: str) -> Plan | None:
        """One run's plan."""
        with self._open.reading() as spending:
            return spending.plan(run)

    def is_unfinished(self, run: str) -> bool:
        """Whether a run has been charged, and has still something to release."""
        plan = self.plan(run)
        return plan is not None and bool(plan.charged[1]) and bool(plan.remaining)

    def is_approved(self, run: str, recipe_digest: str) -> bool:
        """Whether a person has said yes to a run with this recipe."""
        with self._open.reading() as spending:
            return spending.is_approved(run, recipe_digest)

    def unprotected(self) -> int:
        """How many replies have left without differential privacy."""
        with self._open.reading() as spending:
            return spending.unprotected

    def rule(self) -> Rule | None:
        """How costs are added up, since the first charge; None before it."""
        return rule_of(self.plans())

    def total(
        self, delta: float, extra: Iterable[PrivacyEvent] = (), rule: Rule | None = None
    ) -> tuple[float, str]:
        """Epsilon of everything at a delta, and the method; see :func:`total_of`."""
        return total_of(self.plans(), delta, extra, rule)

    def check_binding(self) -> None:
        """Refuse other data than those that were charged so far; nothing is written.

        Raises:
            PolicyRefusal: if runs were announced over other data.
        """
        with self._open.reading() as spending:
            _check_binding(spending, self._data)

    def check_unit(self, unit: Unit) -> None:
        """Refuse another unit than the one that was charged so far.

        Raises:
            PolicyRefusal: if there is one.
        """
        with self._open.reading() as spending:
            _check_unit(spending, unit)

    def announce(
        self,
        run: str,
        recipe_digest: str,
        events: Iterable[PrivacyEvent],
        rule: Rule,
        **terms: Any,
    ) -> None:
        """Write down a run's plan; doing so costs nothing yet, and twice is once.

        Args:
            run: Its id.
            recipe_digest: Of the announced recipe.
            events: All that it is to release.
            rule: How the ledger adds up its costs if this plan is the first to be charged.
            terms: Everything else that the entry says.

        Raises:
            PolicyRefusal: if the same run was announced with another plan, the ledger
                belongs to other data, or has charged another unit.
        """
        values = {
            "run": run,
            "recipe_digest": recipe_digest,
            "events": [event.as_json() for event in merge(events)],
            "rule": rule.as_json(),
            **terms,
        }
        with self._writing() as chain, self._open.reading() as spending:
            self._check_binding(chain, spending)
            if spending.plan(run) is None:
                _check_unit(spending, terms["unit"])
                _check_reading(spending, terms.get("reading", ""))
                chain.append("announced", values)
                return
            before = spending.announced(run) or {}
            # What was settled at the first announcement stays; a policy may change meanwhile.
            settled = {"policy": "", "rule": ""}
            if {**before, **settled} != {**values, **settled}:
                raise PolicyRefusal(
                    f"Run '{run}' was announced before with another plan.",
                    why="A plan is fixed before its first release.",
                    remedy="Start a new run.",
                )

    def check_reading(self, reading: str) -> None:
        """Refuse to count units in another way than they were counted so far.

        Args:
            reading: Digest of how they are told apart today.

        Raises:
            PolicyRefusal: if something was charged under another one.
        """
        with self._open.reading() as spending:
            _check_reading(spending, reading)

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
                answered for another request, the request was charged for another event, or
                the cap would be exceeded.
            OSError: if the disk is full; then nothing may be released.
        """
        with self._writing() as chain, self._open.reading() as spending:
            self._check_binding(chain, spending)
            plan = spending.plan(run)
            if plan is None:
                raise PeerError(f"Run '{run}' was never announced to this site.")
            charged = spending.reservation(run, request)
            if charged == event:
                return
            if charged is not None:
                raise PolicyRefusal(
                    f"Round {round_} of run '{run}' was charged under other terms.",
                    why="This site's settings have changed since; less noise than was charged "
                    "for might be added.",
                    remedy="Start a new run.",
                )
            if spending.was_answered(run, round_, event.purpose):
                raise PolicyRefusal(
                    f"Round {round_} of run '{run}' was answered for another request.",
                    why="Each release of a plan is made once.",
                    remedy="Start a new run.",
                )
            if not plan.holds(event):
                raise PolicyRefusal(
                    f"Run '{run}' has no '{event.purpose}' left in its plan.",
                    why="A site releases what was announced, and nothing beyond.",
                    remedy="Start a new run.",
                )
            _check_unit(spending, plan.unit)
            self._check_cap(spending, plan.having_released(event), cap)
            chain.append(
                "reserved",
                {"run": run, "round": round_, "request": request, "event": event.as_json()},
            )

    def was_sent(self, run: str, request: str) -> bool:
        """Whether a payload for this request may have left."""
        with self._open.reading() as spending:
            return spending.was_sent(run, request)

    def note(self, kind: str, values: dict[str, Any] | Callable[[int], dict[str, Any]]) -> Entry:
        """Write an entry that charges nothing.

        Args:
            kind: What it says.
            values: The entry's, or what makes them of its number.
        """
        with self._writing() as chain:
            made = values(len(chain.entries())) if callable(values) else values
            return chain.append(kind, made)

    def _check_binding(self, chain: Chain, spending: Spending) -> None:
        if spending.data == self._data:
            return
        _check_binding(spending, self._data)
        # Nothing was ever announced to it: it may begin again over these data.
        chain.append("founded", {"site": self._site, "data": self._data})

    def _check_cap(self, spending: Spending, after: Plan, cap: tuple[float, float]) -> None:
        epsilon, delta = cap
        plans = [after if plan.run == after.run else plan for plan in spending.plans()]
        if rule_of(plans) is None:
            # The first charge of all: from now on its plan's rule is the ledger's.
            plans = [replace(plan, first=plan.run == after.run) for plan in plans]
        total, _ = total_of(plans, delta)
        if total > epsilon:
            raise PolicyRefusal(
                f"policy.epsilon_cap = {epsilon:g}: this release would bring the total to "
                f"{total:.4g}.",
                why="The budget of these data would be exceeded.",
                remedy="'fieldmark site budget' says what is left.",
            )

    @contextmanager
    def _writing(self) -> Iterator[Chain]:
        """The writer's lock, with the ledger founded and its torn end charged."""
        with self._open.chain.writing() as chain:
            with self._open.reading() as spending:
                founded = bool(spending.data)
            if not founded and any(entry.kind != TORN for entry in chain.entries()):
                raise DataError(
                    f"The ledger '{chain.path}' does not say over which data it is.",
                    why="What was spent on one unit cannot be told from another's.",
                    remedy=RESTORE,
                )
            if not founded:
                chain.append("founded", {"site": self._site, "data": self._data})
            yield chain


def _check_binding(spending: Spending, data: str) -> None:
    if spending.data != data and spending.plans():
        raise PolicyRefusal(
            "The ledger belongs to other data than those this site names now.",
            why="What was spent on one unit cannot be told from another's.",
            remedy="Restore data.path in site.toml, or make a home of its own for the other data.",
        )


def _check_unit(spending: Spending, unit: Unit) -> None:
    other = next((p.unit for p in spending.plans() if p.charged[1] and p.unit != unit), None)
    if other is not None:
        raise PolicyRefusal(
            f"privacy.unit = '{unit}', and this ledger has protected '{other}' so far.",
            why="Costs of two kinds of units do not add up.",
            remedy="Keep to the unit that the ledger was begun with.",
        )


def _check_reading(spending: Spending, reading: str) -> None:
    for plan in spending.plans():
        # Ledgers of earlier versions do not say.
        if plan.reading and plan.charged[1] and plan.reading != reading:
            column = f" (subject column '{plan.subject_column}')" if plan.subject_column else ""
            raise PolicyRefusal(
                "[data] in site.toml tells units apart in another way than when this ledger was "
                "charged.",
                why=f"Run '{plan.run}' was charged under the earlier reading{column}; costs of "
                "unlike units do not add up, and a report could not say whose they are.",
                remedy="Restore kind, manifest, path, subject and site columns of [data] in "
                "site.toml as they were; labels and the label map may change.",
            )


class _OpenLedger:
    """A ledger's chain and what it says, brought up to date together."""

    def __init__(self, path: Path) -> None:
        self.chain = Chain(path)
        self._spending = Spending()
        self._taken_in = 0

    @contextmanager
    def reading(self) -> Iterator[Spending]:
        """The spending as the chain is now; they do not change meanwhile."""
        with self.chain.guard:
            self._update()
            yield self._spending

    def _update(self) -> None:
        entries = self.chain.entries()
        while self._taken_in < len(entries):
            self._spending.add(entries[self._taken_in])
            self._taken_in += 1


_OPEN: dict[Path, _OpenLedger] = {}


def _opened(path: Path) -> _OpenLedger:
    # A process that serves a site again reads only what was added since.
    path = path.resolve()
    if path not in _OPEN or not path.exists():
        _OPEN[path] = _OpenLedger(path)
    return _OPEN[path]
