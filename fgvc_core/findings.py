"""Findings of a check-up: each with what was found, how bad it is, and what to do."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from fgvc_core.words import visible

Level = Literal["ok", "note", "failed", "not reached"]


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        name: What was checked.
        level: ``failed`` keeps something from working; a ``note`` is worth knowing.
        said: What was found.
        remedy: What to do about it; empty if nothing.
        exit_code: Exit code of the command if this is its first failure.
    """

    name: str
    level: Level
    said: str
    remedy: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Checked:
    """All findings, in order."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """Exit code of the first failure; 0 if there is none."""
        return next((f.exit_code for f in self.findings if f.level == "failed"), 0)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "ok": self.exit_code == 0,
            "checks": [
                {"name": f.name, "level": f.level, "said": f.said, "remedy": f.remedy}
                for f in self.findings
            ],
        }

    def lines(self) -> Iterable[str]:
        """The findings for a terminal, one or two lines each."""
        for finding in self.findings:
            yield f"{finding.level:>11}  {finding.name}: {visible(finding.said)}"
            if finding.remedy:
                yield f"{'':>13}{visible(finding.remedy)}"
