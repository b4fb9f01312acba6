"""How much one site may weigh in a round: at most a stated share, whatever it claims to hold.

A number of examples is a claim. The first one that counted holds for the run (a later one above it
weighs no more), claims are compared with the median of earlier rounds (:mod:`.history`), and
no site, its late replies included, has more than ``federation.max_weight_share`` of a round: in
round 1 there is nothing else to compare a claim with. In a federation of two there is no majority
that a bound could protect, and it would only make a large site weigh what a small one does.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from fieldmark.server.run_log.events import EventLog
from fieldmark.server.strategies import SoundReply

_ROUNDING = 1e-12
"""Two equal weights make up one half each, whatever their sum is rounded to."""


def share_among(sites: int, most: float, *, weighs: bool = True) -> float:
    """The most of a round's weight that one site may have; 1 is no bound.

    Args:
        sites: Registered ones; of two, neither is bounded.
        most: The recipe's ``federation.max_weight_share``.
        weighs: Whether the strategy looks at weights at all: what it ignores is not cut either.
    """
    return most if weighs and sites > 2 else 1.0


def cut_to_share(weights: dict[str, int], share: float) -> dict[str, float]:
    """What each site's weight is multiplied by, 0 to 1, so that none has more than its share.

    Args:
        weights: Site -> its weight, for instance its declared units.
        share: Most of the whole that one site has, from 0.5 to 1 (no bound).
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
    """The same replies, with weights of which no site has more than its share.

    One above it is held back until enough others have come; at most one site can be above a half,
    so that as a rule one reply is held. Where all others together are too little, it weighs
    ``share / (1 - share)`` times as much as they do. A site that is alone weighs what it claims.

    Args:
        replies: Sound ones; a site may have several, late ones.
        share: Most of the round's weight that one site has, from 0.5 to 1.
        number: Which round.
        events: Told of what was cut off.
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
            # Not held on to while the next reply is fetched.
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
