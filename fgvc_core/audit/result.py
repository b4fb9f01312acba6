"""From what an attack has shown to what it proves, beside what is claimed."""

from dataclasses import dataclass

from fgvc_core.audit.membership import Membership, infer_membership
from fgvc_core.audit.one_run import Bound, bound_from_scores, most_provable
from fgvc_core.audit.planted import Observed, audit_generator
from fgvc_core.audit.settings import AuditSettings

CANARY_SHARE = 0.8
"""Share of the permitted error that the canaries' bound may use; the pictures' has the rest."""


@dataclass(frozen=True)
class AuditResult:
    """An audit's outcome. Computed from private data: internal to the site.

    Attributes:
        claimed: Epsilon of the plan.
        delta: At which it is claimed.
        confidence: With which both bounds hold together.
        canaries: What the canaries prove.
        provable: Most that they could have proven.
        pictures: What the same theorem proves from the site's own units.
        membership: The attack on the site's own units in the usual figures.
    """

    claimed: float
    delta: float
    confidence: float
    canaries: Bound
    provable: float
    pictures: Bound
    membership: Membership

    @property
    def lower_bound(self) -> float:
        """The larger of the two bounds on epsilon."""
        return max(self.canaries.epsilon, self.pictures.epsilon)

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the claim."""
        return self.lower_bound <= self.claimed

    @property
    def can_refute(self) -> bool:
        """Whether this many canaries could have contradicted the claim at all."""
        return self.provable > self.claimed


def judge(observed: Observed, claimed: float, delta: float, settings: AuditSettings) -> AuditResult:
    """Bounds from below, at the stated confidence all together.

    Args:
        observed: Of an attack.
        claimed: Epsilon of the plan.
        delta: At which it is claimed.
        settings: ``[audit]``.
    """
    error = 1 - settings.confidence
    ours, theirs = CANARY_SHARE * error, (1 - CANARY_SHARE) * error
    count = len(observed.scores_M)
    return AuditResult(
        claimed=claimed,
        delta=delta,
        confidence=settings.confidence,
        canaries=bound_from_scores(
            observed.scores_M, observed.included_M, settings.guesses, delta, ours
        ),
        provable=most_provable(count, settings.guesses, delta, ours),
        pictures=bound_from_scores(
            observed.unit_scores_U, observed.unit_included_U, settings.guesses, delta, theirs
        ),
        membership=infer_membership(
            observed.unit_scores_U,
            observed.unit_included_U,
            delta,
            error,
            audit_generator(settings),
        ),
    )
