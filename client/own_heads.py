"""What the heads that a site inferred for itself gain there: for the site's people alone.

Each head is a checkpoint in the home's ``personal/`` folder, and a note beside it holds both heads'
scores on the site's validation pictures. Nothing that answers a coordinator reads either.
"""

from pathlib import Path
from typing import Any

from fgvc_core.files import read_json

LAST = 3
"""Number of latest own heads shown."""

NOTE = ".own.json"
"""Ending of a note, in place of the checkpoint's."""


def read_own_heads(home: Path) -> list[dict[str, Any]]:
    """Notes of a site's latest own heads, oldest first.

    Each has ``run``, ``recipe``, the number of validation pictures (``examples``), and how many of
    them the ``released`` head and the site's ``own`` get right.
    """
    paths = sorted(
        (home / "personal").glob(f"*{NOTE}"), key=lambda path: (path.stat().st_mtime, path.name)
    )
    return [found for path in paths[-LAST:] if (found := read_json(path))]


def own_head_lines(heads: list[dict[str, Any]]) -> list[str]:
    """One sentence for each own head."""
    return [f"own head of run {head['run']} ({head['recipe']}): {_gain(head)}" for head in heads]


def _gain(head: dict[str, Any]) -> str:
    examples = head["examples"]
    if not examples:
        return "internal; no validation pictures here to say what it gains"
    released, own = (head[which] / examples for which in ("released", "own"))
    return (
        f"{own:.3f} of {examples} validation pictures right, the released head {released:.3f} "
        f"({own - released:+.3f}); internal"
    )
