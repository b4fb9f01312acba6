"""How a site's replies were taken: what it is told next time, and when it is set aside."""

from dataclasses import dataclass
from typing import Any

from fieldmark.server.run_log.events import EventLog

_FRESH: dict[str, Any] = {"refused_in_row": 0, "notice": "", "folded": 0, "set_aside": None}


@dataclass(frozen=True)
class Standing:
    """The standing of every site of a run.

    Attributes:
        kept: As a checkpoint holds it. ``refused_in_row``: unsound replies since the last
            sound one; ``notice``: the last reason, until a reply is sound; ``folded``: the
            last round whose reply counted; ``set_aside``: why it is not asked any more.
        limit: Unsound replies in a row after which a site is set aside; 0: never.
        events: Where it is shown.
    """

    kept: dict[str, dict[str, Any]]
    limit: int
    events: EventLog

    def of(self, site: str) -> dict[str, Any]:
        """One site's."""
        return self.kept.setdefault(site, dict(_FRESH))

    def in_use(self, sites: list[str]) -> list[str]:
        """Those that are not set aside."""
        return [site for site in sites if not self.kept.get(site, _FRESH)["set_aside"]]

    def found(self) -> int:
        """How many sites' last word was unsound: set aside, or refused and not heard since."""
        return sum(standing["refused_in_row"] > 0 for standing in self.kept.values())

    def sound(self, site: str) -> None:
        """A reply was accepted."""
        self.of(site).update(refused_in_row=0, notice="")

    def unsound(self, site: str, reason: str) -> None:
        """A reply was refused for what it was."""
        standing = self.of(site)
        standing["refused_in_row"] += 1
        standing["notice"] = reason[:500]

    def leave_out(self, site: str, reason: str, round_: int) -> None:
        """What a site released cannot be: it is set aside at once, whatever the limit.

        There is one release of its kind in a run: nothing better can come.
        """
        self.unsound(site, reason)
        self.set_aside(site, round_)

    def set_aside(self, site: str, round_: int) -> None:
        """It is not asked any more, for what its last refused reply was."""
        standing = self.of(site)
        standing["set_aside"] = standing["notice"]
        self._tell(site, round_)

    def void(self, round_: int) -> None:
        """Releases found no quorum: set aside who was refused, so that the others can go on.

        Asked again, a site gives the same release; waiting for another would only void the
        round again, and what the others have paid would count for nothing.
        """
        for site, standing in sorted(self.kept.items()):
            if standing["refused_in_row"] and not standing["set_aside"]:
                self.set_aside(site, round_)

    def counted(self, sites: list[str], round_: int) -> None:
        """A round closed with these sites' replies in it."""
        for site in sites:
            self.of(site)["folded"] = round_

    def close(self, round_: int) -> None:
        """After a round, not within it: set aside who was refused too often."""
        for site, standing in sorted(self.kept.items()):
            refused = standing["refused_in_row"]
            if self.limit and refused >= self.limit and not standing["set_aside"]:
                self.set_aside(site, round_)

    def _tell(self, site: str, round_: int) -> None:
        standing = self.of(site)
        self.events.emit(
            "site_set_aside",
            round=round_,
            site=site,
            refused_in_row=standing["refused_in_row"],
            reason=standing["set_aside"],
        )
