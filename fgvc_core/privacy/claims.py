"""Whether a run's model is differentially private, from its recipe and the sites' statements.

The model is trained under differential privacy only if the contribution of every site was:
unprotected replies of one site break the guarantee of the whole. Whatever can be computed is not
taken from a site's statement: its epsilon is recomputed from its events. Whether a site really
added the noise that it states cannot be checked here; its signed report is the only evidence.

Report, model card, tags, trackers and ``metrics.json`` all use :func:`privacy_claim`.
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
"""Largest accepted epsilon; a larger one has no meaning and may take hours to verify."""

MOST_EVENTS = 64
"""Most different events in one statement; a plan has at most three."""

_SLACK = 1e-4
"""Relative tolerance of a stated epsilon below ours: machines differ in the last digits."""

UNCHECKED = "its statement was not checked: the run was written by an earlier version"


@dataclass(frozen=True)
class PrivacyClaim:
    """For which sites differential privacy holds.

    Attributes:
        sites: Every site that took part -> why differential privacy does not hold for it; empty if
            it does.
    """

    sites: dict[str, str]

    @property
    def holds(self) -> bool:
        """Whether the model was trained under differential privacy, at every site."""
        return bool(self.sites) and not any(self.sites.values())

    @property
    def protected(self) -> list[str]:
        """Sites for which it holds."""
        return [site for site, why in self.sites.items() if not why]

    @property
    def open(self) -> dict[str, str]:
        """Sites for which it does not hold, and why."""
        return {site: why for site, why in self.sites.items() if why}

    def as_json(self) -> dict[str, Any]:
        """Values for ``metrics.json``, which :func:`read_claim` reads back."""
        return {"holds": self.holds, "sites": self.sites}


def privacy_claim(
    asked: PrivacySettings | None,
    sites: Mapping[str, Mapping[str, Any]],
    statements: Mapping[str, Mapping[str, Any]],
) -> PrivacyClaim:
    """Decide for which sites differential privacy holds.

    Args:
        asked: ``[privacy]`` of the recipe; None if absent, although a site may insist on its own.
        sites: Site -> its figures: ``answered``, the number of accepted replies, and
            ``unprotected``, the number of those without a statement.
        statements: Site -> its last accepted statement, as values for JSON.
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
    """Why differential privacy does not hold for a site's contribution; empty if it does."""
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
    # Check an approximation first: composing a false statement's events could be expensive.
    about = limit_epsilon(events, delta)
    if about > 2 * stated + 10:
        return f"it states epsilon {stated:.3g}, and what it released costs about {about:.3g}"
    cost = epsilon_of_plan(events, delta)
    if cost > stated * (1 + _SLACK):
        return f"it states epsilon {stated:.3g}, and what it released costs {cost:.3g}"
    return ""
