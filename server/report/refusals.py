"""Refused replies of a run, from its events: how many, of which sites, why."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fieldmark.server.report.reading import Event, read_events

REASONS_SHOWN = 30
NAMES_SHOWN = 8
LONGEST_REASON = 400

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")
_MISSING = ("No reply within", "No answer to the roll call")
"""Beginnings of the reasons for replies that never came."""


def refusals_by_reason(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Refused replies and nodes, grouped by reason with its numbers ignored.

    Returns:
        The most frequent first: ``reason`` (of the first one), ``count``, ``sites`` (names),
        ``first`` and ``last`` round (None for the roll call), and whether the replies are
        ``missing`` rather than refused.
    """
    groups: dict[str, list[Event]] = {}
    for event in events:
        if event.get("accepted") is False or event.get("event") == "start_refused":
            reason = str(event.get("reason") or "no reason given")
            groups.setdefault(_NUMBER.sub("#", reason), []).append(event)
    found = []
    for members in groups.values():
        rounds = [e["round"] for e in members if e.get("round") is not None]
        if any(e.get("event") == "start_refused" for e in members):
            rounds.append(0)
        names = list(
            dict.fromkeys(str(e.get("site") or e.get("proven") or "a node") for e in members)
        )
        reason = str(members[0].get("reason") or "no reason given")[:LONGEST_REASON]
        found.append(
            {
                "reason": reason,
                "count": len(members),
                "sites": names[:NAMES_SHOWN],
                "sites_left": max(len(names) - NAMES_SHOWN, 0),
                "first": min(rounds, default=None),
                "last": max(rounds, default=None),
                "missing": reason.startswith(_MISSING),
            }
        )
    return sorted(found, key=lambda group: -group["count"])


def run_refusals(folder: Path) -> list[dict[str, Any]]:
    """Refusals of a run's folder; see :func:`refusals_by_reason`."""
    return refusals_by_reason(read_events(folder / "events.jsonl"))


def counted(groups: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """(refused replies, replies that never came)."""
    refused = sum(group["count"] for group in groups if not group["missing"])
    return refused, sum(group["count"] for group in groups if group["missing"])


def in_words(group: Mapping[str, Any]) -> str:
    """One sentence about a group: how many, of which sites, when, why."""
    count, first, last = group["count"], group["first"], group["last"]
    noun = "reply" if count == 1 else "replies"
    verb = "never came from" if group["missing"] else "refused, of"
    more = f" and {group['sites_left']} more" if group["sites_left"] else ""
    when = (
        "at the roll call"
        if first is None
        else "at the start"
        if first == last == 0
        else f"in round {first}"
        if first == last
        else f"in rounds {first} to {last}"
    )
    return f"{count} {noun} {verb} {', '.join(group['sites'])}{more}, {when}: {group['reason']}"


LINES_SHOWN = 5


def refusal_lines(
    groups: Sequence[Mapping[str, Any]], sites: Mapping[str, Mapping[str, Any]] | None = None
) -> list[str]:
    """Lines for the end of a run: replies that did not count, by reason, and sites set aside.

    Args:
        groups: Of :func:`refusals_by_reason`.
        sites: ``sites`` of ``metrics.json``, for those that were set aside.
    """
    refused, missing = counted(groups)
    lines = []
    if refused:
        lines.append(f"Refused: {refused:,} {'reply' if refused == 1 else 'replies'}.")
    if missing:
        lines.append(f"Missing: {missing:,} {'reply' if missing == 1 else 'replies'}.")
    lines += [f"  {in_words(group)}" for group in groups[:LINES_SHOWN]]
    if len(groups) > LINES_SHOWN:
        lines.append(f"  ... and {len(groups) - LINES_SHOWN} rarer reasons, in the report.")
    aside = {site: figures["set_aside"] for site, figures in (sites or {}).items()
             if figures.get("set_aside")}  # fmt: skip
    lines += [
        f"Set aside at the end: {site}: {why}" for site, why in list(aside.items())[:LINES_SHOWN]
    ]
    if len(aside) > LINES_SHOWN:
        lines.append(f"... and {len(aside) - LINES_SHOWN} more sites set aside, in the report.")
    return lines
