"""Facts of a privacy report: plain values computed from a ledger's entries and the policy alone."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from fgvc_core.errors import DataError
from fgvc_core.privacy.accountant import ADJACENCY, PrivacyEvent, merge, read_events
from fieldmark.client.privacy.chain import GENESIS, TORN, Entry
from fieldmark.client.privacy.ledger import Plan, plans_of, rule_of, total_of
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.privacy.report.departures import LISTED_ONE_BY_ONE, Row, departures, summed
from fieldmark.client.privacy.report.meaning import meaning_of
from fieldmark.client.privacy.report.secure import plain_sums, secure_facts

RUNS_SHOWN = 100
"""Number of latest runs shown one by one; earlier ones are summed up."""

T = TypeVar("T")

SHOWN = 50
"""Number of latest refusals, crashes, recoveries, approvals and audits shown one by one."""


def collect(entries: Sequence[Entry], policy: Policy) -> dict[str, Any]:
    """Facts of a ledger.

    Args:
        entries: All entries, verified.
        policy: For the cap, and the delta of the total.

    Raises:
        DataError: if an entry is malformed.
    """
    try:
        return _collect(entries, policy)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"The ledger has an entry that cannot be: {type(error).__name__}: {error}.",
            why="What was spent cannot be told from it.",
            remedy="Restore the ledger from a copy; do not mend it by hand.",
        ) from None


def _collect(entries: Sequence[Entry], policy: Policy) -> dict[str, Any]:
    plans = plans_of(entries)
    rows = departures(entries)
    runs = _run_ids(entries)
    shown = runs[-RUNS_SHOWN:]
    latest = set(shown)
    listed = rows if len(rows) <= LISTED_ONE_BY_ONE else summed(r for r in rows if r.run in latest)
    total = _total(plans, policy)
    return {
        "ledger": _ledger(entries),
        "units": sorted({plan.unit for plan in plans}),
        "subject_columns": _subject_columns(plans),
        "adjacency": ADJACENCY,
        "total": total,
        "meaning": _meaning(total),
        "runs": _runs(shown, plans, rows, entries),
        "earlier_runs": _earlier(runs[:-RUNS_SHOWN], rows),
        "departures": {
            "replies": len(rows),
            "bytes": sum(row.bytes for row in rows),
            "by_charge": dict(sorted(Counter(row.charge for row in rows).items())),
            "one_by_one": listed is rows,
            "rows": [row.as_json() for row in listed],
        },
        "refusals": _refusals(entries),
        "crashes": _crashes(entries, plans),
        "recoveries": _recoveries(entries),
        "approvals": _last(_of(entries, "approved"), ("run", "name")),
        "audits": _audits(entries),
        "irregular": _irregular(entries, plans, rows),
        # Absent where there are none, as in reports of versions that knew no own heads.
        **({"own_heads": own} if (own := _own_heads(entries)) else {}),
        # Absent where no sum was masked, as in reports of versions that knew none.
        **({"secure": found} if (found := secure_facts(entries, plans, policy)) else {}),
        **({"plain_sums": plain} if (plain := plain_sums(entries, plans)) else {}),
    }


def _own_heads(entries: Sequence[Entry]) -> int:
    """Number of runs whose recipe lets this site infer a head of its own."""
    return sum(bool(e.values.get("own_head")) for e in _of(entries, "announced"))


def _ledger(entries: Sequence[Entry]) -> dict[str, Any]:
    founded = list(_of(entries, "founded"))
    return {
        "entries": len(entries),
        "head": entries[-1].hash if entries else GENESIS,
        "first": entries[0].time if entries else None,
        "last": entries[-1].time if entries else None,
        "site": founded[-1].values["site"] if founded else None,
        "data": founded[-1].values["data"] if founded else None,
        "kinds": dict(sorted(Counter(entry.kind for entry in entries).items())),
    }


def _total(plans: list[Plan], policy: Policy) -> dict[str, Any]:
    epsilon, how = total_of(plans, policy.delta)
    cap, rule = policy.cap, rule_of(plans)
    return {
        "epsilon": _finite(epsilon),
        "delta": policy.delta,
        "how": how,
        "cap": cap,
        "rule": None if rule is None else rule.as_json(),
        "left": None if cap is None else max(cap - epsilon, 0.0),
        "runs": sum(bool(plan.charged[1]) for plan in plans),
    }


def _meaning(total: dict[str, Any]) -> dict[str, Any]:
    """Meaning of the spent epsilon, and of the cap once used up."""
    spent, cap, delta = total["epsilon"], total["cap"], total["delta"]
    return {
        "spent": meaning_of(spent, delta) if spent else None,
        "cap": None if cap is None else meaning_of(cap, delta),
    }


def _run_ids(entries: Iterable[Entry]) -> list[str]:
    """All runs, in order of their first entry."""
    named = (entry.values.get("run") for entry in entries if entry.kind != "audited")
    return list(dict.fromkeys(str(run) for run in named if run))


def _runs(
    shown: list[str], plans: list[Plan], rows: list[Row], entries: Sequence[Entry]
) -> list[dict[str, Any]]:
    by_run = {plan.run: plan for plan in plans}
    own = _by_run((row.run, row) for row in rows)
    approved = _by_run((str(e.values["run"]), e) for e in _of(entries, "approved"))
    refused = _by_run((str(e.values["run"]), e) for e in _of(entries, "refused"))
    announced = _by_run((str(e.values["run"]), e) for e in _of(entries, "announced"))
    found = []
    for run in shown:
        plan, replies, yes = by_run.get(run), own.get(run, []), approved.get(run, [])
        found.append(
            {
                "run": run,
                "name": plan.name if plan else yes[0].values["name"] if yes else None,
                "first": replies[0].first if replies else None,
                "last": replies[-1].last if replies else None,
                "replies": len(replies),
                "bytes": sum(row.bytes for row in replies),
                "unprotected": sum(row.charge == "unprotected" for row in replies),
                "refusals": len(refused.get(run, [])),
                "approved": yes[0].time if yes else None,
                "protection": None if plan is None else _protection(plan, announced[run][0]),
            }
        )
    return found


def _protection(plan: Plan, announced: Entry) -> dict[str, Any]:
    epsilon, how = plan.cost()
    return {
        "announced": plan.time,
        "recipe_digest": plan.recipe_digest,
        "unit": plan.unit,
        "subject_column": plain_column(plan.subject_column or "") or None
        if plan.unit == "subject"
        else None,
        "units": plan.units,
        "target": plan.target,
        "epsilon": _finite(epsilon),
        "delta": plan.delta,
        "how": how,
        "adjacency": announced.values["adjacency"],
        "policy": announced.values["policy"],
        "planned": _count(plan.events),
        "released": _count(plan.released),
        "lost": _count(plan.lost),
        "events": [event.as_json() for event in plan.priced],
    }


def _earlier(runs: list[str], rows: list[Row]) -> dict[str, Any] | None:
    if not runs:
        return None
    earlier = set(runs)
    own = [row for row in rows if row.run in earlier]
    return {
        "runs": len(runs),
        "replies": len(own),
        "bytes": sum(row.bytes for row in own),
        "unprotected": sum(row.charge == "unprotected" for row in own),
        "first": own[0].first if own else None,
        "last": own[-1].last if own else None,
    }


def _refusals(entries: Sequence[Entry]) -> dict[str, Any]:
    """Refusals by run and reason, with the policy setting behind each."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in _of(entries, "refused"):
        run, reason = str(entry.values["run"]), str(entry.values["reason"])
        known = groups.setdefault(
            (run, reason),
            {
                "run": run,
                "what": entry.values["what"],
                "reason": reason,
                "line": reason.split()[0] if reason.startswith("policy.") else None,
                "count": 0,
                "first": entry.time,
                "last": entry.time,
            },
        )
        known["count"] += 1
        known["last"] = entry.time
    found = list(groups.values())
    return {
        "count": sum(group["count"] for group in found),
        # A policy with a cap also refuses recipes without differential privacy, by the same line.
        "by_cap": sum(
            g["count"]
            for g in found
            if g["line"] == "policy.epsilon_cap" and "would bring the total to" in g["reason"]
        ),
        "rows": found[-SHOWN:],
        "earlier": max(len(found) - SHOWN, 0),
    }


def _crashes(entries: Sequence[Entry], plans: list[Plan]) -> dict[str, Any]:
    sent = {(e.values["run"], e.values["request"]) for e in _of(entries, "sent")}
    unanswered = [
        {
            "run": entry.values["run"],
            "round": entry.values["round"],
            "purpose": entry.values["event"]["purpose"],
            "count": entry.values["event"]["count"],
            "time": entry.time,
        }
        for entry in _of(entries, "reserved")
        if (entry.values["run"], entry.values["request"]) not in sent
    ]
    return {
        "torn": len(list(_of(entries, TORN))),
        "torn_at": [entry.time for entry in _of(entries, TORN)][-SHOWN:],
        "charged_for_torn": sum(_count(plan.lost) for plan in plans),
        "charged_unanswered": len(unanswered),
        "rows": unanswered[-SHOWN:],
    }


def _recoveries(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Recoveries of lost entries, and what was charged for each."""
    return [
        {
            "time": entry.time,
            "missing": int(entry.values["missing"]),
            "charged": sum(_count(read_events(run["events"])) for run in entry.values["runs"]),
            "runs": len(entry.values["runs"]),
            "unprotected": int(entry.values["unprotected"]),
        }
        for entry in _of(entries, "recovered")
    ][-SHOWN:]


def _audits(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Recorded values of audits, under the names in their entries."""
    return [
        {
            "time": entry.time,
            **{
                # JSON has no infinity.
                str(name): str(value) if value in (math.inf, -math.inf) else value
                for name, value in entry.values.items()
                if isinstance(value, str | int | float) and name != "time"
            },
        }
        for entry in _of(entries, "audited")
    ][-SHOWN:]


def _irregular(entries: Sequence[Entry], plans: list[Plan], rows: list[Row]) -> list[str]:
    """Inconsistencies that a valid ledger never has."""
    found = []
    if len({plan.unit for plan in plans}) > 1:
        found.append("it protects two kinds of units, whose costs do not add up")
    if len({plan.reading for plan in plans if plan.reading and plan.charged[1]}) > 1:
        found.append("it adds up costs of units that were told apart in different ways")
    if any(e.values["adjacency"] != ADJACENCY for e in _of(entries, "announced")):
        found.append("a run was accounted for under another adjacency")
    for plan in plans:
        allowed = {event.key: event.count for event in merge(plan.events)}
        beyond = [e for e in merge(plan.released) if e.count > allowed.get(e.key, 0)]
        if beyond:
            purposes = ", ".join(sorted({event.purpose for event in beyond}))
            found.append(f"run {plan.run} released more than it had announced ({purposes})")
    uncharged = [row for row in rows if row.charge == "uncharged"]
    for run in dict.fromkeys(row.run for row in uncharged):
        count = sum(row.run == run for row in uncharged)
        found.append(f"run {run}: {count} replies that call themselves protected were not charged")
    return found[:SHOWN]


def _subject_columns(plans: list[Plan]) -> list[str]:
    """Columns of subject ids of all runs that protected subjects."""
    named = {plan.subject_column for plan in plans if plan.unit == "subject"}
    return sorted(plain_column(column) for column in named if column)


def plain_column(column: str) -> str:
    """Column name for display: letters, digits and a few signs."""
    return re.sub(r"[^\w .:-]", "?", column)[:200]


def _finite(epsilon: float) -> float | None:
    """Epsilon, or None if infinite, because JSON has no infinity."""
    return epsilon if math.isfinite(epsilon) else None


def _last(entries: Iterable[Entry], names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{"time": e.time, **{name: e.values[name] for name in names}} for e in entries][-SHOWN:]


def _of(entries: Iterable[Entry], kind: str) -> Iterable[Entry]:
    return (entry for entry in entries if entry.kind == kind)


def _by_run(pairs: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = {}
    for run, value in pairs:
        found.setdefault(run, []).append(value)
    return found


def _count(events: Iterable[PrivacyEvent]) -> int:
    return sum(event.count for event in events)
