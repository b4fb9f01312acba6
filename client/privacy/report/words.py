"""Sentences of a privacy report: meaning of the figures, assumptions, and what is not protected."""

from typing import Any

from fieldmark.client.privacy.policy import Policy
from fieldmark.client.privacy.report.secure import alone_in_words, plain_in_words, secure_words
from fieldmark.client.privacy.report.stated_site import StatedSite

PROTECTED_FROM = (
    "Everybody who sees what leaves this site: the coordinator above all, curious or "
    "malicious, alone or together with the other sites, anyone on the network, and whoever "
    "gets the finished model. Such an attacker may know every other picture of these data, "
    "choose what is asked, and compute for ever. Not people inside the site, who can see the "
    "pictures themselves."
)

HOW = (
    "Each unit's part in what leaves is bounded, and noise of known size is added before it "
    "leaves. What that costs, epsilon, is written to this site's ledger, and is on its disk, "
    "before the work begins."
)

METHODS = {
    "PLD": "Privacy loss distributions: an upper bound, exact up to rounding, for a plan that was "
    "fixed before its first release. A run that ended early costs as much as its whole plan.",
    "Renyi": "A Renyi odometer: an upper bound at whatever moment it is read, also where later "
    "requests, or the end, were chosen after earlier answers had been seen. Its orders were fixed "
    "before the first release. That is why the total after one run is often a little above the "
    "run's own epsilon.",
}
"""The accountant's methods: first word of a method's name -> sentence."""


def words_of(site: StatedSite, policy: Policy, facts: dict[str, Any]) -> dict[str, Any]:
    """All sentences that depend on the facts.

    Args:
        site: Self-description of the site.
        policy: Policy when the report was made.
        facts: Facts of the ledger.
    """
    return {
        "headline": _uncapped(policy) + _headline(site, facts),
        "warnings": _warnings(facts),
        "budget": _budget(policy, facts["total"], facts["refusals"]["by_cap"]),
        "unit": _unit(facts["units"], facts["subject_columns"]),
        "policy": _demand(policy),
        "protected_from": PROTECTED_FROM if facts["units"] else "Nobody, so far.",
        "how": HOW if facts["units"] else "Not at all, so far.",
        "methods": _methods(facts),
        "assumptions": _assumptions(site, policy, facts),
        "not_protected": _not_protected(policy, facts),
        **({"secure": secure_words(facts["secure"])} if "secure" in facts else {}),
    }


def unit_word(facts: dict[str, Any]) -> str:
    """Protected unit as one word; 'unit' if it is not unique."""
    return facts["units"][0] if len(facts["units"]) == 1 else "unit"


def one_in(delta: float) -> str:
    """Small probability for display.

    >>> one_in(1e-5)
    '1 in 100,000'
    """
    return f"1 in {round(1 / delta):,}"


def _headline(site: StatedSite, facts: dict[str, Any]) -> str:
    kinds = facts["departures"]["by_charge"]
    charged, bare = kinds.get("charged", 0), kinds.get("unprotected", 0)
    total = facts["total"]
    if bare and not charged:
        return (
            f"Nothing was protected: {_count(bare, 'reply', 'replies')} computed from the pictures "
            f"of {site.name} left without differential privacy."
        )
    if not facts["departures"]["replies"] and not total["runs"]:
        return f"Nothing has left {site.name} yet."
    if not charged and not total["runs"]:
        return (
            f"Nothing computed from the pictures of {site.name} has left: no more than its name, "
            "key, version, and refusals."
        )
    told = (
        f"{_count(charged, 'reply', 'replies')} computed from the pictures of {site.name} left "
        f"under differential privacy, at a cost of {_cost(total)} to each {unit_word(facts)}."
    )
    if bare:
        told += f" {_count(bare, 'more', 'more')} left without it."
    if "secure" in facts:
        told += f" {alone_in_words(facts['secure'])}"
    return told


def _uncapped(policy: Policy) -> str:
    """Opening sentence if the site explicitly sets no cap."""
    if policy.epsilon_cap != "none":
        return ""
    return (
        "This site has set no cap (policy.epsilon_cap = 'none'): nothing at the site limits what "
        "all runs together may cost. "
    )


def _cost(total: dict[str, Any]) -> str:
    if total["epsilon"] is None:
        return f"no finite epsilon (delta {total['delta']:g})"
    cap = "no cap" if total["cap"] is None else f"cap {total['cap']:g}"
    return f"epsilon {total['epsilon']:.3f} ({cap}, delta {total['delta']:g})"


def _warnings(facts: dict[str, Any]) -> list[str]:
    bare = facts["departures"]["by_charge"].get("unprotected", 0)
    told = []
    if bare:
        told.append(
            f"{_count(bare, 'reply', 'replies')} left without differential privacy. Nothing bounds "
            "what can be told from that about single pictures, and no epsilon on this page speaks "
            "of it."
        )
    if "plain_sums" in facts:
        told.append(plain_in_words(facts["plain_sums"]))
    told += [f"The ledger is not sound: {line}." for line in facts["irregular"]]
    total = facts["total"]
    if total["cap"] is not None and (total["epsilon"] is None or total["epsilon"] > total["cap"]):
        told.append(
            "More is spent than today's cap allows: the cap was lowered after it was spent, or "
            "crashes or a recovery were charged."
        )
    return told


def _budget(policy: Policy, total: dict[str, Any], by_cap: int) -> str:
    if total["cap"] is None:
        names = "says epsilon_cap = 'none'" if policy.epsilon_cap else "names no cap"
        return f"The policy {names}: nothing at this site stops the spending."
    if total["rule"] is not None and total["rule"]["one_plan"]:
        return _budget_of_one_plan(total)
    told = (
        f"Epsilon {total['left']:.3f} is left. Several runs together cost less than the sum of "
        "each alone, so that a run of that size or a little more may still fit: 'fieldmark site "
        "budget DIR --plan RECIPE' says which."
    )
    if by_cap:
        told += (
            f" The cap has stopped {_count(by_cap, 'request', 'requests')}: the site itself "
            "refused, and no coordinator can raise the cap."
        )
    return told


def _budget_of_one_plan(total: dict[str, Any]) -> str:
    told = (
        "The first run fits under the cap only as one plan that was fixed beforehand, so that the "
        "whole of it is spent once anything of it was released. Another run is added to the whole "
        "of the first by the odometer, which gives more: 'fieldmark site budget DIR --plan RECIPE' "
        "says whether it fits, and it hardly ever does before the cap is raised."
    )
    if total["how"].endswith("after one plan"):
        told += (
            " That has happened here: the total that was stated before the second run and the "
            "total stated since hold at delta each, and both together at twice delta."
        )
    return told


def _demand(policy: Policy) -> str:
    if policy.demand:
        return f"{policy.demand}: nothing about the pictures leaves without differential privacy."
    return (
        "This policy lets replies about the pictures leave without differential privacy: it asks "
        "for none (privacy = 'required', a cap or a unit would)."
    )


def _unit(units: list[str], columns: list[str]) -> str:
    if not units:
        return "Nothing has been protected yet, so that no unit is settled."
    if units == ["image"]:
        return (
            "One image (byte-equal pictures count as one). An image is not a person: whoever is on "
            "several pictures is protected less, by up to epsilon for each of them."
        )
    named = " or ".join(f"'{column}'" for column in columns)
    column = f"the column {named} of this site's records" if columns else "this site's records"
    return (
        f"One subject: all pictures that carry the same id in {column}. That is what a subject is "
        "here, and nothing else: a lesion is not a patient. If the id names lesions, a patient "
        "with three lesions is three subjects and is protected less, by up to epsilon for each."
    )


def _methods(facts: dict[str, Any]) -> list[str]:
    hows = [run["protection"]["how"] for run in facts["runs"] if run["protection"]]
    used = " ".join([facts["total"]["how"], *hows])
    return [sentence for word, sentence in METHODS.items() if word in used]


def _assumptions(site: StatedSite, policy: Policy, facts: dict[str, Any]) -> list[str]:
    told = _of_the_mechanism(site, policy, facts) if facts["units"] else []
    told += [
        f"The code that ran is the installed one ({site.version}), unchanged. No code comes from "
        "the coordinator.",
        "The ledger is the only one over these data. Changed, dropped or exchanged lines break its "
        "chain; an old copy put back is noticed by who remembers a later head: the file "
        "ledger.head and the register at the site, and the coordinator.",
    ]
    if not site.data_as_founded and facts["ledger"]["entries"]:
        told.append(
            "The ledger was begun for other data than those that site.toml names today: it speaks "
            "of the former."
        )
    return told


def _of_the_mechanism(site: StatedSite, policy: Policy, facts: dict[str, Any]) -> list[str]:
    unit = unit_word(facts)
    article = "An" if unit[0] in "aeio" else "A"
    told = [
        f"Neighbouring data: the same data with one {unit}'s pictures taken out "
        f"({facts['adjacency']}). If one {unit} is exchanged for another (replace-one), the same "
        "releases cost about twice as much.",
        f"The number of {unit}s is public: this site declares {site.units:,}. Noise, sampling rate "
        "and weight are computed from it; the true number does not leave.",
        "Chance comes from the operating system of the site's machine, for sampling and for noise, "
        "and is never logged.",
        f"{article} {unit} that is also at another site, or in other data with a ledger of their "
        "own, pays there too: the costs add up, and no ledger here can see that.",
    ]
    if site.units * policy.delta > 0.1:
        told.append(
            f"Delta ({policy.delta:g}, {one_in(policy.delta)}) is large for {site.units:,} "
            f"{unit}s: it is to be far below one in their number."
        )
    return told


def _not_protected(policy: Policy, facts: dict[str, Any]) -> list[str]:
    unit = unit_word(facts)
    time = (
        f"Replies are held until {policy.reply_seconds:g} s after their request, so that shorter "
        "work does not show; longer work does."
        if policy.reply_seconds
        else "The time a reply takes is not hidden (policy.reply_seconds = 0) and may depend on "
        "the pictures."
    )
    bare = facts["departures"]["by_charge"].get("unprotected", 0)
    first = ["What the replies marked NOT PROTECTED tell: nothing bounds it."] if bare else []
    group = "Several units together: what holds for one holds for a group of k at k times epsilon."
    return [
        *first,
        "What is true of a whole class: if the model learns that a disease has a certain look, it "
        f"says so about a person whether or not their pictures were among the data. One {unit} "
        "more or less changes next to nothing about that.",
        *([group] if facts["units"] else []),
        f"Side channels. {time} That the site takes part, when it answers, what it refuses and "
        "that something failed ('unavailable') can be seen.",
        "Whoever holds the site's disk, backups or keys: pictures, cached features and stored "
        "replies lie there unprotected by this.",
        "What reaches others by another way: publications, exports, other systems, people.",
        *([_own_heads(facts["own_heads"])] if "own_heads" in facts else []),
        "The site's own use of the model, and what anybody concludes from it.",
    ]


def _own_heads(runs: int) -> str:
    return (
        f"Heads of this site's own: {_count(runs, 'run', 'runs')} let it put its exact sums in "
        "place of its noisy ones. Such a head is as private as the pictures. It lies in the "
        "site's home, readable by the home's account alone, and cannot leave by Fieldmark: no "
        "reply holds it or its scores, no export and no validation kit is made of it. Whoever "
        "copies the file, or passes its answers on, releases what no epsilon here covers."
    )


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
