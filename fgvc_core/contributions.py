"""Which sites contributed to a run, and why the others that were asked did not.

A site has contributed if at least one update or release of it was accepted. Being registered, being
present at the roll call, or scoring a model of others is no contribution.
"""

from collections.abc import Mapping
from typing import Any

from fgvc_core.words import visible

SHOWN = 8
"""Sites without a contribution that a sentence names; the others are counted."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def contributors(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the sites that contributed, according to ``metrics.json``.

    Where a run of an earlier version does not say who did not, finished rounds tell; a digest of
    the code is there as soon as one reply was accepted.

    >>> contributors({"sites": {"a": {"rounds": 2}, "b": {}}, "not_contributed": {"b": "away"}})
    ['a']
    """
    sites: Mapping[str, Mapping[str, Any]] = metrics.get("sites") or {}
    missing = metrics.get("not_contributed") or {}
    return [
        site
        for site, figures in sites.items()
        if site not in missing and (figures.get("rounds") or figures.get("code"))
    ]


def absent(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Each site that was asked and did not contribute, with the reason in words."""
    counted = set(contributors(metrics))
    found = {
        str(site): "no update of it was accepted"
        for site in metrics.get("sites") or {}
        if site not in counted
    }
    return {**found, **(metrics.get("not_contributed") or {})}


def who_learnt(metrics: Mapping[str, Any]) -> str:
    """The subject of a headline, with a small first letter.

    A single contributing site is not called a federation.

    >>> sites = {"a": {"rounds": 3}, "b": {"rounds": 1}}
    >>> who_learnt({"sites": sites})
    'two sites'
    >>> who_learnt({"sites": sites, "not_contributed": {"c": "away"}})
    'two of three sites'
    >>> who_learnt({"sites": {"a": {"rounds": 3}}, "not_contributed": {"c": "away"}})
    'one site of two'
    """
    count = len(contributors(metrics))
    asked = count + len(absent(metrics))
    if count == asked:
        return f"{number(count)} {'site' if count == 1 else 'sites'}"
    if count == 1:
        return f"one site of {number(asked)}"
    return f"{number(count)} of {number(asked)} {'site' if asked == 1 else 'sites'}"


def absent_in_words(metrics: Mapping[str, Any]) -> str:
    """A sentence on the sites that were asked and did not contribute; empty if all did.

    >>> absent_in_words({"sites": {}, "not_contributed": {"oslo": "away: no answer"}})
    'Did not contribute: oslo (away: no answer).'
    """
    missing = absent(metrics)
    if not missing:
        return ""
    said = [f"{visible(site)} ({visible(why).rstrip('.')})" for site, why in missing.items()]
    more = f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return f"Did not contribute: {'; '.join(said[:SHOWN])}{more}."


def alone_in_words(metrics: Mapping[str, Any]) -> str:
    """A sentence on rounds to which one site of several contributed alone; empty if none was.

    Sites can be removed, or fall away, in the middle of a run.

    >>> rounds = [{"accepted": 2}, {"accepted": 1}, {"accepted": 1}]
    >>> alone_in_words({"sites": {"a": {"rounds": 3}, "b": {"rounds": 1}}, "history": rounds})
    'In two of three rounds one site alone contributed.'
    """
    history = metrics.get("history") or []
    alone = sum(entry.get("accepted") == 1 for entry in history)
    if not alone or len(contributors(metrics)) < 2:
        return ""
    rounds = "round" if len(history) == 1 else "rounds"
    return f"In {number(alone)} of {number(len(history))} {rounds} one site alone contributed."


def contribution_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Lines for the end of a run: who contributed, and who of those asked did not, and why.

    None if two or more sites were asked and all of them contributed, no round being one site's.
    """
    count, missing = len(contributors(metrics)), absent_in_words(metrics)
    alone = alone_in_words(metrics)
    if count > 1 and not (missing or alone):
        return []
    told = f"Contributed: {who_learnt(metrics)}."
    if count == 1:
        told += " This is the model of a single site, not of a federation."
    return [line for line in (told, alone, missing) if line]


def number(count: int) -> str:
    """A count in words up to ten, else in figures."""
    return _NUMBERS[count] if count < len(_NUMBERS) else f"{count:,}"
