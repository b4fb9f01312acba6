"""What went wrong in a run: refusals by reason, and who sent what round by round."""

import re
from collections.abc import Sequence
from typing import Any

from fieldmark.server.report.charts import cells

REASONS_SHOWN = 30
NAMES_SHOWN = 8
LONGEST_REASON = 400
GRID_SITES, GRID_COLUMNS = 40, 90
"""Largest grid of sites and rounds; more rounds share a column."""

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")
Event = dict[str, Any]


def refusals_by_reason(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Refused replies and nodes, those with one reason together whatever its numbers are.

    Returns:
        The most frequent first: ``reason`` (of the first one), ``count``, ``sites`` (names),
        ``first`` and ``last`` round (None for the roll call).
    """
    groups: dict[str, list[Event]] = {}
    for event in events:
        if event.get("accepted") is False:
            reason = str(event.get("reason") or "no reason given")
            groups.setdefault(_NUMBER.sub("#", reason), []).append(event)
    found = []
    for members in groups.values():
        rounds = [e["round"] for e in members if e.get("round") is not None]
        names = list(dict.fromkeys(str(e.get("site") or "a node") for e in members))
        found.append(
            {
                "reason": str(members[0].get("reason") or "no reason given")[:LONGEST_REASON],
                "count": len(members),
                "sites": names[:NAMES_SHOWN],
                "sites_left": max(len(names) - NAMES_SHOWN, 0),
                "first": min(rounds, default=None),
                "last": max(rounds, default=None),
            }
        )
    return sorted(found, key=lambda group: -group["count"])


def traffic(events: Sequence[Event], sites: Sequence[str], rounds: int) -> str | None:
    """Bytes of each site in each round as a grid; None without a reply.

    Args:
        events: Of the run.
        sites: Their names; the first forty are shown.
        rounds: How many were run; the closing evaluation stands in the last.
    """
    shown = list(sites[:GRID_SITES])
    wide = max(-(-max(rounds, 1) // GRID_COLUMNS), 1)
    columns = -(-max(rounds, 1) // wide)
    moved: dict[tuple[str, int], int] = {}
    refused: set[tuple[str, int]] = set()
    for event in events:
        if event.get("event") not in ("reply", "late_reply") or event.get("site") not in shown:
            continue
        at = (event["site"], min(max(int(event.get("round") or 1) - 1, 0) // wide, columns - 1))
        moved[at] = moved.get(at, 0) + int(event.get("bytes_up") or 0)
        moved[at] += int(event.get("bytes_down") or 0)
        if event.get("accepted") is False:
            refused.add(at)
    if not moved:
        return None
    labels = [
        _rounds(column * wide + 1, min((column + 1) * wide, rounds)) for column in range(columns)
    ]
    return cells("Bytes by round and site", shown, labels, moved, refused)


def _rounds(first: int, last: int) -> str:
    return f"round {first}" if last <= first else f"rounds {first} to {last}"
