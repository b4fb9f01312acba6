"""Ledger of a site's privacy spending: announced plans, reserved releases, replies sent.

Every cost is on the disk before the work for it begins. The ledger is bound to its data: the first
entry names them, and plans over other data are refused.

Kinds of entries:

=========  ====================================================================
founded    site and data of the ledger
announced  a run's whole plan: events, delta, unit, public number of units, and the rule for
           adding up costs if it is charged first
approved   a person at the site has approved a run
declined   a person at the site has declined a run; of two decisions the later counts
reserved   one release of a plan, before the work for it
ready      the site has worked for a masked sum, and with which fresh key; nothing can be opened yet
view       the one set of sites for whose sum the site sends its part at that place
sent       a reply that may leave from now on: its contents and size
refused    a refused run or request, and the reason
torn       a crash cut an entry short; what it may have reserved is charged
recovered  entries were lost with a disk; what they may have reserved is charged
key        the site changed its key
peers      people have compared the keys of the other sites
audited    the site audited itself; nothing left
=========  ====================================================================
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fgvc_core.errors import DataError, PeerError, PolicyRefusal
from fgvc_core.privacy.accountant import PrivacyEvent, merge
from fgvc_core.privacy.odometer import Rule
from fgvc_core.privacy.settings import Unit
from fgvc_core.secure.ready import Place
from fieldmark.client.privacy.chain import RESTORE, TORN, Chain, Entry
from fieldmark.client.privacy.plans import Plan, rule_of, total_alone, total_of
from fieldmark.client.privacy.spending import Spending, plans_of

__all__ = ["FILE", "Ledger", "Plan", "plans_of", "rule_of", "total_alone", "total_of"]

FILE = "ledger.jsonl"


class Ledger:
    """Ledger of one site.

    Args:
        home: Home of the site.
        data: Digest of the data; see :attr:`fieldmark.client.site.Site.data_binding`.
        site: The site's name.
    """

    def __init__(self, home: Path, data: str, site: str) -> None:
        self._open = _opened(home / FILE)
        self._data = data
        self._site = site

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self._open.chain.path

    def entries(self) -> Sequence[Entry]:
        """All entries, verified."""
        with self._open.reading():
            return tuple(self._open.chain.entries())

    def head(self) -> tuple[int, str]:
        """Number of entries, and the last one's hash.

        After a recovery, the number continues from the longest ledger that anybody has seen.
        """
        with self._open.reading() as spending:
            return len(self._open.chain.entries()) + spending.ahead, self._open.chain.head

    def length_with(self, number: int) -> int:
        """Number of entries, if the one with this number is the last."""
        with self._open.reading() as spending:
            return number + 1 + spending.ahead

    def holds(self, head: str) -> bool:
        """Whether an entry with this hash is in the chain."""
        with self._open.reading() as spending:
            return spending.holds(head)

    def plans(self) -> list[Plan]:
        """Plans of all announced runs, in order."""
        with self._open.reading() as spending:
            return spending.plans()

    def plan(self, run: str) -> Plan | None:
        """Plan of a run, or None."""
        with self._open.reading() as spending:
            return spending.plan(run)

    def is_unfinished(self, run: str) -> bool:
        """Whether a run has been charged and still has releases to make."""
        plan = self.plan(run)
        return plan is not None and bool(plan.charged[1]) and bool(plan.remaining)

    def is_approved(self, run: str, recipe_digest: str) -> bool:
        """Whether a person has approved a run with this recipe, and not declined it since."""
        with self._open.reading() as spending:
            return spending.is_approved(run, recipe_digest)

    def is_declined(self, run: str, recipe_digest: str) -> bool:
        """Whether a person has declined a run with this recipe, and not approved it since."""
        with self._open.reading() as spending:
            return spending.is_declined(run, recipe_digest)

    def was_decided(self, run: str) -> bool:
        """Whether a person has approved or declined a run, with whichever recipe."""
        with self._open.reading() as spending:
            return spending.was_decided(run)

    def was_turned_down(self, run: str) -> bool:
        """Whether this site's policy refused a run at its last roll call."""
        with self._open.reading() as spending:
            return spending.was_turned_down(run)

    def was_approved(self, run: str) -> bool:
        """Whether a person has approved a run, with whichever recipe."""
        with self._open.reading() as spending:
            return spending.was_approved(run)

    def unprotected(self) -> int:
        """Number of replies sent without differential privacy."""
        with self._open.reading() as spending:
            return spending.unprotected

    def rule(self) -> Rule | None:
        """Rule for adding up costs, fixed by the first charge; None before it."""
        return rule_of(self.plans())

    def total(
        self, delta: float, extra: Iterable[PrivacyEvent] = (), rule: Rule | None = None
    ) -> tuple[float, str]:
        """Total epsilon at a delta, and the method; see :func:`total_of`."""
        return total_of(self.plans(), delta, extra, rule)

    def check_binding(self) -> None:
        """Refuse data other than those of the ledger's plans; nothing is written.

        Raises:
            PolicyRefusal: if runs were announced over other data.
        """
        with self._open.reading() as spending:
            _check_binding(spending, self._data)

    def check_unit(self, unit: Unit) -> None:
        """Refuse a unit other than the one charged so far.

        Raises:
            PolicyRefusal: if another one was charged.
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
        """Record a run's plan. This costs nothing yet, and is idempotent.

        Args:
            run: Id of the run.
            recipe_digest: Digest of the announced recipe.
            events: All releases of the run.
            rule: How the ledger adds up costs if this plan is charged first.
            terms: All other values of the entry.

        Raises:
            PolicyRefusal: if the run was announced with another plan, the ledger belongs to other
                data, or it has charged another unit.
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
            # Policy and rule keep their first values, and may differ when announced again.
            settled = {"policy": "", "rule": ""}
            if {**before, **settled} != {**values, **settled}:
                raise PolicyRefusal(
                    f"Run '{run}' was announced before with another plan.",
                    why="A plan is fixed before its first release.",
                    remedy="Start a new run.",
                )

    def check_reading(self, reading: str) -> None:
        """Refuse to count units in another way than before.

        Args:
            reading: Digest of how units are defined now.

        Raises:
            PolicyRefusal: if something was charged with another definition.
        """
        with self._open.reading() as spending:
            _check_reading(spending, reading)

    def total_alone(self, delta: float, extra: Iterable[PrivacyEvent] = ()) -> tuple[float, str]:
        """As :meth:`total`, if all other sites work with the attacker; see :func:`total_alone`."""
        return total_alone(self.plans(), delta, extra)

    def ready_at(self, place: Place) -> tuple[str, str] | None:
        """(context, fresh key) with which the site said at a place that it is ready, or None."""
        with self._open.reading() as spending:
            return spending.ready_at(place)

    def view_at(self, place: Place) -> str | None:
        """Digest (hex) of the one set of sites that was answered at a place, or None."""
        with self._open.reading() as spending:
            return spending.view_at(place)

    def note_ready(self, place: Place, ctx: str, key: str) -> None:
        """Record that the site is ready at a place; idempotent.

        Raises:
            PolicyRefusal: if it was ready there for another request, or with another key.
        """
        with self._writing() as chain, self._open.reading() as spending:
            before = spending.ready_at(place)
            if before is None:
                chain.append("ready", {**_values_of(place), "ctx": ctx, "key": key})
            elif before != (ctx, key):
                raise second_request(place, before[0])

    def fix_view(self, place: Place, view: str, keys: Mapping[str, str]) -> None:
        """Record the one set of sites for whose sum this site answers at a place; idempotent.

        Under the writer's lock, so that of two processes with two sets one is refused.

        Args:
            place: Where in the run.
            view: Digest of the set, hex.
            keys: Its sites, sorted, with the fingerprints of the keys that they signed with: a
                report says of which of them people have compared.

        Raises:
            PolicyRefusal: if another set was answered there.
        """
        with self._writing() as chain, self._open.reading() as spending:
            before = spending.view_at(place)
            if before is None:
                values = {**_values_of(place), "view": view, "names": list(keys)}
                chain.append("view", {**values, "keys": dict(keys)})
            elif before != view:
                raise second_view(place, before)

    def reserve(
        self,
        run: str,
        round_: int,
        request: str,
        event: PrivacyEvent,
        cap: tuple[float, float],
        alone_cap: float = math.inf,
    ) -> None:
        """Charge one release before the work for it.

        A repeated request is charged only once.

        Args:
            run: Id of the run.
            round_: Number of the round.
            request: Digest of the request without its nonce.
            event: The release.
            cap: (epsilon, delta) that the whole ledger must not exceed.
            alone_cap: Epsilon that it must not exceed if all other sites work with the attacker.

        Raises:
            PolicyRefusal: if the plan does not have the event (any more), the round was answered
                for another request, the request was charged for another event, or the cap would be
                exceeded.
            OSError: if the disk is full; nothing may be released then.
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
            self._check_cap(spending, plan.having_released(event), cap, alone_cap)
            chain.append(
                "reserved",
                {"run": run, "round": round_, "request": request, "event": event.as_json()},
            )

    def was_sent(self, run: str, request: str) -> bool:
        """Whether a reply to this request may have left."""
        with self._open.reading() as spending:
            return spending.was_sent(run, request)

    def note(self, kind: str, values: dict[str, Any] | Callable[[int], dict[str, Any]]) -> Entry:
        """Append an entry that charges nothing.

        Args:
            kind: Kind of the entry.
            values: Its values, or a function of its number that returns them.
        """
        with self._writing() as chain:
            made = values(len(chain.entries())) if callable(values) else values
            return chain.append(kind, made)

    def _check_binding(self, chain: Chain, spending: Spending) -> None:
        if spending.data == self._data:
            return
        _check_binding(spending, self._data)
        # Nothing was announced yet: the ledger can still be bound to other data.
        chain.append("founded", {"site": self._site, "data": self._data})

    def _check_cap(
        self, spending: Spending, after: Plan, cap: tuple[float, float], alone_cap: float
    ) -> None:
        epsilon, delta = cap
        plans = [after if plan.run == after.run else plan for plan in spending.plans()]
        if rule_of(plans) is None:
            # The first charge: its plan's rule becomes the ledger's.
            plans = [replace(plan, first=plan.run == after.run) for plan in plans]
        total, _ = total_of(plans, delta)
        if total > epsilon:
            raise PolicyRefusal(
                f"policy.epsilon_cap = {epsilon:g}: this release would bring the total to "
                f"{total:.4g}.",
                why="The budget of these data would be exceeded.",
                remedy="'fieldmark site budget' says what is left.",
            )
        if alone_cap == math.inf:
            return
        total, how = total_alone(plans, delta)
        if total > alone_cap:
            raise PolicyRefusal(
                f"policy.epsilon_alone_cap = {alone_cap:g}: this release would bring what this "
                f"site's noise alone promises to {in_numbers(total, how)}.",
                why="If all other sites worked with the coordinator, that is what would hold.",
                remedy="'fieldmark site budget' says what is left.",
            )

    @contextmanager
    def _writing(self) -> Iterator[Chain]:
        """Writer's lock, after founding the ledger and charging an incomplete last line."""
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


def in_numbers(epsilon: float, how: str) -> str:
    """An epsilon for a sentence; the method if it is infinite.

    >>> in_numbers(math.inf, "no promise"), in_numbers(6.6212, "PLD of one plan")
    ('no promise', '6.621')
    """
    return f"{epsilon:.4g}" if math.isfinite(epsilon) else how


def _values_of(place: Place) -> dict[str, Any]:
    return {"run": place.run, "round": place.round, "phase": place.phase, "what": place.kind}


def second_request(place: Place, ctx: str) -> PolicyRefusal:
    """Refusal of another request at a place; names the first."""
    return PolicyRefusal(
        f"This site was asked something else before at {place}: {ctx[:16]}.",
        why="It works once for each sum; two sums over other models, sites or settings could be "
        "subtracted.",
        remedy="Repeat the first request, or go on with the next round.",
    )


def second_view(place: Place, view: str) -> PolicyRefusal:
    """Refusal of another set of sites at a place; names the first."""
    return PolicyRefusal(
        f"This site has sent its part for another set of sites at {place}: {view[:16]}.",
        why="Of two sums over different sites, the difference is what single sites sent.",
        remedy="Ask for the first set again; it gets the same bytes.",
    )


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
        # Ledgers of earlier versions do not record the reading.
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
    """Chain and spending of a ledger, updated together."""

    def __init__(self, path: Path) -> None:
        self.chain = Chain(path)
        self._spending = Spending()
        self._taken_in = 0

    @contextmanager
    def reading(self) -> Iterator[Spending]:
        """Current spending, locked while it is used."""
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
    # Cached per process, so that later calls read only new entries.
    path = path.resolve()
    if path not in _OPEN or not path.exists():
        _OPEN[path] = _OpenLedger(path)
    return _OPEN[path]
