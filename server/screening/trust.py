"""Trust in each site: consecutive refusals, setting aside, and bounds on its weight.

A site whose replies are refused is told why, and is set aside after too many. Its number of
examples is a claim. The first one that counted holds for the run (a larger one later weighs no
more), claims are compared with the median of earlier rounds
(:mod:`fieldmark.server.screening.comparison`), and no site, its late replies included, has more
than ``federation.max_weight_share`` of a round: in round 1 there is nothing else to compare a claim
with. Two sites are not bounded: there is no majority to protect, and a bound would only give both
the same weight.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fieldmark.server.run_log.events import EventLog
from fieldmark.server.strategies import SoundReply

_ROUNDING = 1e-12
"""Relative tolerance, so that two equal weights are one half each despite rounding."""

_FRESH: dict[str, Any] = {"refused_in_row": 0, "notice": "", "folded": 0, "set_aside": None}


@dataclass(frozen=True)
class SiteTrust:
    """Records how every site's replies were judged in a run.

    Attributes:
        kept: As in a checkpoint. ``refused_in_row``: refused replies since the last accepted one;
            ``notice``: the last reason, until a reply is accepted; ``folded``: the last round whose
            reply counted; ``set_aside``: why it is not asked any more.
        limit: Consecutive refused replies after which a site is set aside; 0: never.
        events: Records sites that are set aside.
    """

    kept: dict[str, dict[str, Any]]
    limit: int
    events: EventLog

    def of(self, site: str) -> dict[str, Any]:
        """The record of one site."""
        return self.kept.setdefault(site, dict(_FRESH))

    def in_use(self, sites: list[str]) -> list[str]:
        """The sites that are not set aside."""
        return [site for site in sites if not self.kept.get(site, _FRESH)["set_aside"]]

    def found(self) -> int:
        """Number of sites whose last reply was refused: set aside, or silent since."""
        return sum(record["refused_in_row"] > 0 for record in self.kept.values())

    def sound(self, site: str) -> None:
        """Record an accepted reply."""
        self.of(site).update(refused_in_row=0, notice="")

    def unsound(self, site: str, reason: str) -> None:
        """Record a reply that was refused for its contents."""
        record = self.of(site)
        record["refused_in_row"] += 1
        record["notice"] = reason[:500]

    def leave_out(self, site: str, reason: str, round_: int) -> None:
        """Set a site aside at once because its release is impossible, whatever the limit.

        A run has one release of each kind, so the site cannot try again.
        """
        self.unsound(site, reason)
        self.set_aside(site, round_)

    def set_aside(self, site: str, round_: int) -> None:
        """Stop asking a site, for the reason that its last reply was refused."""
        record = self.of(site)
        record["set_aside"] = record["notice"]
        self._tell(site, round_)

    def void(self, round_: int) -> None:
        """Set aside every refused site after a round of releases without a quorum.

        Asked again, such a site repeats the same release: the round would be void again, and the
        other sites would have paid for nothing.
        """
        for site, record in sorted(self.kept.items()):
            if record["refused_in_row"] and not record["set_aside"]:
                self.set_aside(site, round_)

    def counted(self, sites: list[str], round_: int) -> None:
        """Record that a round closed with these sites' replies in it."""
        for site in sites:
            self.of(site)["folded"] = round_

    def close(self, round_: int) -> None:
        """Set aside the sites that were refused too often; called after a round."""
        for site, record in sorted(self.kept.items()):
            refused = record["refused_in_row"]
            if self.limit and refused >= self.limit and not record["set_aside"]:
                self.set_aside(site, round_)

    def _tell(self, site: str, round_: int) -> None:
        record = self.of(site)
        self.events.emit(
            "site_set_aside",
            round=round_,
            site=site,
            refused_in_row=record["refused_in_row"],
            reason=record["set_aside"],
        )


def share_among(sites: int, most: float, *, weighs: bool = True) -> float:
    """Largest share of a round's weight that one site may have; 1 is no bound.

    Args:
        sites: Number of registered sites; with two, neither is bounded.
        most: The recipe's ``federation.max_weight_share``.
        weighs: Whether the strategy uses weights; if not, there is no bound.
    """
    return most if weighs and sites > 2 else 1.0


def cut_to_share(weights: dict[str, int], share: float) -> dict[str, float]:
    """Factors, 0 to 1, that reduce weights so that no site has more than its share.

    Args:
        weights: Site -> its weight, for instance its declared units.
        share: Largest share of the whole for one site, from 0.5 to 1 (no bound).
    """
    total = sum(weights.values())
    factors = dict.fromkeys(weights, 1.0)
    for site, weight in weights.items():
        others = total - weight
        if others and weight > share * total * (1 + _ROUNDING):
            factors[site] = share / (1 - share) * others / weight
    return factors


def bounded(
    replies: Iterable[SoundReply], share: float, number: int, events: EventLog
) -> Iterator[SoundReply]:
    """The same replies, with weights reduced so that no site has more than its share.

    A reply above the share is held back until enough others have come; at most one site can be
    above a half, so usually one reply is held. If all others together are too few, it weighs
    ``share / (1 - share)`` times as much as they do. A single site keeps its claimed weight.

    Args:
        replies: Accepted ones; a site may have several, if some are late.
        share: Largest share of the round's weight for one site, from 0.5 to 1.
        number: Which round.
        events: Told of reduced weights.
    """
    claimed: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    held: list[SoundReply] = []

    def within(site: str) -> bool:
        return claimed[site] <= share * sum(claimed.values()) * (1 + _ROUNDING)

    for reply in replies:
        claimed[reply.site] += reply.weight  # type: ignore[assignment]
        held.append(reply)
        del reply
        ready = [position for position, waiting in enumerate(held) if within(waiting.site)]
        for done, position in enumerate(ready):
            found = held.pop(position - done)
            passed[found.site] += found.weight  # type: ignore[assignment]
            yield found
            # Free the memory before the next reply is fetched.
            del found
    while held:
        found = held.pop(0)
        others = sum(claimed.values()) - claimed[found.site]
        if others > 0:
            most = share / (1 - share) * others - passed[found.site]
            if found.weight > most:
                events.emit(
                    "weight_cut",
                    round=number,
                    site=found.site,
                    claimed=found.weight,
                    weight=max(most, 0.0),
                    share=share,
                )
            found = replace(found, weight=min(found.weight, most))
        passed[found.site] += found.weight  # type: ignore[assignment]
        if found.weight > 0:
            yield found
        del found
