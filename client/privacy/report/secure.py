"""What a privacy report says about masked sums: over whom, on what they rest, and what remains.

Noise that sites share holds as long as few of them work with the coordinator. With more of them
the rest of the noise is smaller, so epsilon is larger, down to this site's own noise alone.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from fgvc_core.privacy.accountant import PrivacyEvent, alone, epsilon_of_plan
from fieldmark.client.privacy.chain import Entry
from fieldmark.client.privacy.ledger import Plan, total_alone
from fieldmark.client.privacy.policy import Policy

NAMES_SHOWN = 30

SUMS_SHOWN = 6
"""Sums of a run that are told one by one."""


def secure_facts(entries: Sequence[Entry], plans: Iterable[Plan], policy: Policy) -> dict[str, Any]:
    """Facts of a ledger about masked sums; empty if no run has shared noise.

    Args:
        entries: All entries, verified.
        plans: Plans of the same ledger.
        policy: For the cap, and the delta of the total.
    """
    plans = list(plans)
    shared = [plan for plan in plans if plan.is_shared]
    if not shared:
        return {}
    total, how = total_alone(plans, policy.delta)
    views = [entry for entry in entries if entry.kind == "view"]
    compared = [entry for entry in entries if entry.kind == "peers"]
    names = sorted({str(name) for entry in views for name in entry.values["names"]})
    # By key, not by name: a key that was compared later is not the one that a sum was sent under.
    used, known = _keys(views), _keys(compared)
    own = {e.values["site"] for e in entries if e.kind == "founded"}
    others = set(names) - own
    return {
        "epsilon_alone": total if math.isfinite(total) else None,
        "how_alone": how,
        "cap_alone": policy.alone_cap,
        "peers": policy.peers,
        "names": names,
        "not_compared": sorted(n for n in others if not used[n] or used[n] - known[n]),
        "compared": None
        if not compared
        else {"by": str(compared[-1].values["by"]), "time": compared[-1].time},
        "changed": sorted({str(n) for entry in compared for n in entry.values.get("changed", {})}),
        "runs": [_run(plan, entries, views) for plan in shared],
    }


def plain_sums(entries: Iterable[Entry], plans: Iterable[Plan]) -> dict[str, int]:
    """Masked sums without noise that this site was in: how many, over how many sites; or nothing.

    Args:
        entries: All entries, verified.
        plans: Plans of the same ledger: what is in no plan has no noise.
    """
    planned = {plan.run for plan in plans}
    views = [entry.values for entry in entries if entry.kind == "view"]
    sizes = [len(values["names"]) for values in views if values["run"] not in planned]
    return {"count": len(sizes), "least": min(sizes), "most": max(sizes)} if sizes else {}


def plain_in_words(found: dict[str, int]) -> str:
    """The same as a warning."""
    return (
        f"{found['count']:,} of them were this site's parts of masked sums over {found['least']} "
        f"sites or more: the coordinator saw these sums alone, as long as no site of them was "
        "invented by it. Where the sites of two rounds differ, their difference says roughly what "
        "the others sent."
    )


def _keys(entries: Iterable[Entry]) -> defaultdict[str, set[str]]:
    """Site -> all of its keys in these entries."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for entry in entries:
        for name, key in entry.values.get("keys", {}).items():
            found[str(name)].add(str(key))
    return found


def _run(plan: Plan, entries: Sequence[Entry], views: Sequence[Entry]) -> dict[str, Any]:
    announced = next(e for e in entries if e.kind == "announced" and e.values["run"] == plan.run)
    rules = announced.values["secure"]
    sizes = [len(e.values["names"]) for e in views if e.values["run"] == plan.run]
    least, colluding = min(sizes or [int(rules["least"])]), int(rules["colluding"])
    events = plan.charged[0]

    def cost(honest: int) -> float | None:
        """Epsilon if so many sites of the smallest sum have added their noise."""
        share = math.sqrt(honest / (least - colluding))
        return _cost(events, share, plan.delta)

    return {
        "run": plan.run,
        "sums": sizes,
        "least": int(rules["least"]),
        "colluding": colluding,
        "together": _cost(events, 1.0, plan.delta),
        "one_more": cost(least - colluding - 1),
        "alone": plan.cost_alone() if math.isfinite(plan.cost_alone()) else None,
        # A unit at two sites is in two parts of one sum: it moves it twice as far.
        "two_sites": _cost(events, 0.5, plan.delta),
    }


def _cost(events: Iterable[PrivacyEvent], share: float, delta: float) -> float | None:
    """Epsilon of a plan with this share of its noise; None: less than is accounted for."""
    left = alone(
        replace(event, noise_multiplier=event.noise_multiplier * share, sharers=1)
        for event in events
    )
    return None if left is None else epsilon_of_plan(left, delta)


def alone_in_words(secure: dict[str, Any]) -> str:
    """What this site's noise alone promises, for the headline."""
    alone = secure["epsilon_alone"]
    said = "nothing is promised" if alone is None else f"it is epsilon {alone:.3f}"
    held = (
        "That holds because sites share the noise of sums that the coordinator sees; if all other "
        f"sites worked with it, {said}."
    )
    if not secure["not_compared"] and secure["compared"] is not None:
        return held
    return (
        f"{held} The keys of other sites were not all compared, so against a dishonest coordinator "
        "that is what holds."
    )


def secure_words(secure: dict[str, Any]) -> list[str]:
    """All sentences about masked sums, for the officer."""
    told = [_run_in_words(run, secure["names"]) for run in secure["runs"]]
    told.append(_pins(secure))
    told.append(
        "Not protected by it: that the sites took part (each sees the others' names), and the sum "
        "itself: one site can spoil it or keep it from being opened, but not open another."
    )
    return told


def _run_in_words(run: dict[str, Any], names: list[str]) -> str:
    sums = ", ".join(map(str, run["sums"])) or "no"
    if len(run["sums"]) > SUMS_SHOWN:
        sums = f"{min(run['sums'])} to {max(run['sums'])}, {len(run['sums'])} times,"
    shown = ", ".join(names[:NAMES_SHOWN]) + (" and others" if len(names) > NAMES_SHOWN else "")
    together, more, alone, twice = (
        "nothing is promised" if run[name] is None else f"{run[name]:.3f}"
        for name in ("together", "one_more", "alone", "two_sites")
    )
    at_most = run["colluding"]
    return (
        f"Run {run['run']}: this site sent its part of sums over {sums} sites, and the coordinator "
        f"saw those sums. Epsilon {together} holds as long as at most {at_most} of all "
        f"sites of the federation ({shown}) work with the coordinator or run altered code; with "
        f"{at_most + 1} of them in a sum, {more}; if all others did, {alone}. For somebody who is "
        f"also at another of these sites, {twice}."
    )


def _pins(secure: dict[str, Any]) -> str:
    unknown, compared = secure["not_compared"], secure["compared"]
    if unknown or compared is None:
        what = ", ".join(unknown[:NAMES_SHOWN]) or "the other sites"
        return (
            f"Fingerprints NOT compared: {what}. A dishonest coordinator could have invented them, "
            "and what this site's noise alone promises is what holds."
        )
    changed = ", ".join(secure["changed"][:NAMES_SHOWN])
    anew = f" New keys since, compared anew: {changed}." if changed else ""
    on = compared["time"][:10]
    return f"Fingerprints of the others: compared by {compared['by']} on {on}.{anew}"
