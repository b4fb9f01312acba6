"""What may be said of a run's privacy, computed from its recipe and from what each site stated.

A model is learnt under differential privacy only if every site's part in it was: one site whose
replies were not protected is enough for the whole not to be. A site's statement is taken at its
word in nothing that can be computed: its epsilon is computed again from its events. What a site
*did* nobody but the site can know; whether it noised as it says is in its own signed report.

Report, model card, tags, trackers and ``metrics.json`` all go by :func:`privacy_claim`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fgvc_core.errors import FieldmarkError
from fgvc_core.privacy.accountant import (
    ADJACENCY,
    PrivacyEvent,
    epsilon_of_plan,
    limit_epsilon,
    read_events,
)
from fgvc_core.privacy.settings import PrivacySettings

MOST_EPSILON = 1000.0
"""No statement above it counts: it promises nothing, and computing it again could take hours."""

MOST_EVENTS = 64
"""Different events in one statement; a plan has at most three."""

_SLACK = 1e-4
"""Share by which a stated epsilon may be below ours: machines differ in the last digits."""

UNCHECKED = "its statement was not checked: the run was written by an earlier version"


@dataclass(frozen=True)
class PrivacyClaim:
    """What holds for whom.

    Attributes:
        sites: Every site that took part -> why differential privacy does not hold for it; empty
            where it does.
    """

    sites: dict[str, str]

    @property
    def holds(self) -> bool:
        """Whether the model was learnt under differential privacy: at every site of it."""
        return bool(self.sites) and not any(self.sites.values())

    @property
    def protected(self) -> list[str]:
        """Sites for which it holds."""
        return [site for site, why in self.sites.items() if not why]

    @property
    def open(self) -> dict[str, str]:
        """Sites for which it does not, and why."""
        return {site: why for site, why in self.sites.items() if why}

    def as_json(self) -> dict[str, Any]:
        """As ``metrics.json`` holds it; :func:`read_claim` reads it back."""
        return {"holds": self.holds, "sites": self.sites}


def privacy_claim(
    asked: PrivacySettings | None,
    sites: Mapping[str, Mapping[str, Any]],
    statements: Mapping[str, Mapping[str, Any]],
) -> PrivacyClaim:
    """Decide what holds.

    Args:
        asked: ``[privacy]`` of the recipe; None: it asks for none, though a site may insist.
        sites: Site -> its figures: ``answered``, accepted replies, and ``unprotected``, those of
            them without a statement.
        statements: Site -> its last accepted statement, as plain values.
    """
    return PrivacyClaim(
        {
            site: _why_not(asked, figures, statements.get(site))
            for site, figures in sorted(sites.items())
            if figures.get("answered") or site in statements
        }
    )


def read_claim(metrics: Mapping[str, Any]) -> PrivacyClaim:
    """The claim of a run, from its ``metrics.json``."""
    if "privacy_claim" in metrics:
        return PrivacyClaim(dict(metrics["privacy_claim"]["sites"]))
    stated = metrics.get("privacy") or {}
    if not stated:
        return PrivacyClaim({})
    names = sorted({*(metrics.get("sites") or {}), *stated})
    return PrivacyClaim({n: UNCHECKED if n in stated else _BARE for n in names})


_BARE = "its replies left without differential privacy"


def _why_not(
    asked: PrivacySettings | None,
    figures: Mapping[str, Any],
    statement: Mapping[str, Any] | None,
) -> str:
    """Why differential privacy does not hold for a site's part, or an empty text."""
    if statement is None:
        return _BARE
    if figures.get("unprotected"):
        return f"{figures['unprotected']} of its replies left without differential privacy"
    if statement["adjacency"] != ADJACENCY:
        return "it states another adjacency than ours"
    if asked is not None and statement["unit"] != asked.unit:
        return f"it protects each {statement['unit']}, and the recipe asks for each {asked.unit}"
    if asked is not None and statement["delta"] > asked.delta:
        return f"it states delta {statement['delta']:g}, and the recipe asks for {asked.delta:g}"
    if len(statement["events"]) > MOST_EVENTS:
        return f"it states more than {MOST_EVENTS} different releases"
    try:
        events = read_events(statement["events"])
    except FieldmarkError:
        return "what it states is no release"
    if not events:
        return "it states that nothing was released, and replied all the same"
    return _false_epsilon(events, float(statement["epsilon"]), float(statement["delta"]))


def _false_epsilon(events: tuple[PrivacyEvent, ...], stated: float, delta: float) -> str:
    if not stated <= MOST_EPSILON:
        return f"it states epsilon {stated:.3g}, which promises nothing"
    # About what it costs, before anything is composed: a lie may be costly to compute.
    about = limit_epsilon(events, delta)
    if about > 2 * stated + 10:
        return f"it states epsilon {stated:.3g}, and what it released costs about {about:.3g}"
    cost = epsilon_of_plan(events, delta)
    if cost > stated * (1 + _SLACK):
        return f"it states epsilon {stated:.3g}, and what it released costs {cost:.3g}"
    return ""
