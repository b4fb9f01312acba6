"""What is charged: events of known cost, and the plan that announces them all beforehand."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from fgvc_core.errors import DataError

ADJACENCY = "zero-out, accounted as add-or-remove-one"
"""The neighbouring data sets of every promise: one unit's pictures taken out."""

LEAST_SAMPLED_NOISE = 0.2
"""Noise multiplier below which sampled releases are neither planned nor read from a ledger:
their privacy loss would reach so far that composing it takes minutes (13 s for 100 releases at
0.2, 173 s at 0.05, on one core), at an epsilon that promises nothing."""

MOST_RELEASES = 10_000_000
"""Of one event; more than any plan announces, and few enough to be composed."""

Purpose = Literal["centre", "class-sums", "step", "scores"]


@dataclass(frozen=True, order=True)
class PrivacyEvent:
    """``count`` releases of a Gaussian mechanism.

    Attributes:
        purpose: What was released.
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        sampling_rate: Probability that a unit took part, 1 for all of them.
        count: How many such releases, at least 1.
    """

    purpose: Purpose
    noise_multiplier: float
    sampling_rate: float = 1.0
    count: int = 1

    def as_json(self) -> dict[str, Any]:
        """Plain values, from which :func:`read_events` makes an equal event."""
        return asdict(self)


Plan = Callable[[float], Iterable[PrivacyEvent]]
"""A base noise multiplier -> all events of a run."""


def read_events(values: Iterable[dict[str, Any]]) -> tuple[PrivacyEvent, ...]:
    """Events from plain values.

    Raises:
        DataError: if they are no events, or cannot be (a rate above 1, no noise, so little
            noise that a stranger's ledger would keep whoever verifies it busy for hours).
    """
    events = []
    for value in values:
        try:
            event = PrivacyEvent(**value)
            possible = (
                event.purpose in get_args(Purpose)
                and 0 < event.noise_multiplier < math.inf
                and 0 < event.sampling_rate <= 1
                and (event.sampling_rate == 1 or event.noise_multiplier >= LEAST_SAMPLED_NOISE)
                and type(event.count) is int
                and 1 <= event.count <= MOST_RELEASES
            )
        except TypeError:
            possible = False
        if not possible:
            raise DataError(
                f"{value!r} is no privacy event.",
                why="Its cost cannot be computed.",
                remedy="Restore the ledger from a copy; do not mend it by hand.",
            )
        events.append(event)
    return tuple(events)


def merge(events: Iterable[PrivacyEvent]) -> tuple[PrivacyEvent, ...]:
    """Equal events counted together, in an order of their own.

    The accountant's answer moves by 1e-8 with the order of composition: one order, one answer.
    """
    counts: dict[tuple[Purpose, float, float], int] = {}
    for event in events:
        key = (event.purpose, event.noise_multiplier, event.sampling_rate)
        counts[key] = counts.get(key, 0) + event.count
    return tuple(
        PrivacyEvent(purpose, noise, rate, count)
        for (purpose, noise, rate), count in sorted(counts.items())
    )


def take(event: PrivacyEvent, count: int) -> PrivacyEvent:
    """``count`` of an event's releases."""
    return PrivacyEvent(event.purpose, event.noise_multiplier, event.sampling_rate, count)
