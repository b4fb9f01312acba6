"""Why a site that was asked did not contribute to a run, from the run's events."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST = 300
"""Longest reason that is kept, in characters; a site's own words may be longer."""

_ANSWERED = re.compile(r"Site '[^']*' answered '(?P<code>[a-z-]+)'\.\s*(?P<words>.*)", re.S)
_AWAY = "away: it did not answer the roll call"


def reasons(
    asked: Iterable[str],
    contributed: Mapping[str, int],
    events: Iterable[Mapping[str, Any]],
) -> dict[str, str]:
    """Each site that was asked and did not contribute, with its last known reason.

    Args:
        asked: Names of the sites that were asked to take part.
        contributed: Site -> number of its accepted updates and releases.
        events: The run's, in order.
    """
    missing = {site: _AWAY for site in sorted(asked) if contributed.get(site, 0) < 1}
    for event in events:
        told = _told(event)
        if told is not None and told[0] in missing:
            missing[told[0]] = told[1]
    return missing


def _told(event: Mapping[str, Any]) -> tuple[str, str] | None:
    """(site, what the event says about its part in the run), or None."""
    kind, why = event.get("event"), str(event.get("reason") or "")[:LONGEST]
    site = event.get("site") or event.get("proven") or event.get("registered")
    if not site:
        return None
    if kind == "roll_call":
        if event.get("accepted"):
            return site, "admitted, and no round has asked it for an update"
        if event.get("proven"):
            return site, f"refused at the roll call: {_own_words(why)}"
        silent = why.startswith("No answer")
        return site, _AWAY if silent else f"refused at the roll call: {why}"
    if kind == "awaiting_approval":
        return site, "awaiting approval: nobody there has approved the run"
    if kind == "site_set_aside":
        return site, f"set aside: {why}"
    if kind in ("reply", "late_reply", "start_refused") and not event.get("accepted"):
        return site, why if why.startswith("No reply") else f"refused: {_own_words(why)}"
    if kind == "site_left":
        gone = event.get("why")
        return site, "removed from the allow-list" if gone == "removed" else "away: its node left"
    return None


def _own_words(why: str) -> str:
    """A reason without the repeated name of the site, and with its code in words."""
    found = _ANSWERED.match(why)
    if found is None:
        return why
    by = "by its own policy: " if found["code"] == "refused-policy" else ""
    return by + (found["words"] or found["code"])
