"""Result of an audit: what an attack proves about epsilon, compared with the claim."""

from dataclasses import dataclass

from fgvc_core.audit.membership import Membership, infer_membership
from fgvc_core.audit.one_run import Bound, bound_from_scores, most_provable
from fgvc_core.audit.planted import Observed, audit_generator
from fgvc_core.audit.settings import AuditSettings

CANARY_SHARE = 0.8
"""Share of the permitted error spent on the canaries' bound; the rest goes to the pictures'."""


@dataclass(frozen=True)
class AuditResult:
    """Outcome of an audit. Computed from private data: internal to the site.

    Attributes:
        claimed: Epsilon of the plan.
        delta: The delta of the claim.
        confidence: Probability with which both bounds hold jointly.
        canaries: Bound from the canaries.
        provable: Largest epsilon that they could have proven.
        pictures: Bound from the site's own units, by the same theorem.
        membership: Membership inference on the site's own units.
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
        """Whether the bounds are consistent with the claim."""
        return self.lower_bound <= self.claimed

    @property
    def can_refute(self) -> bool:
        """Whether this number of canaries could have refuted the claim at all."""
        return self.provable > self.claimed


def judge(observed: Observed, claimed: float, delta: float, settings: AuditSettings) -> AuditResult:
    """Lower bounds on epsilon, which hold jointly at the stated confidence.

    Args:
        observed: Result of an attack.
        claimed: Epsilon of the plan.
        delta: The delta of the claim.
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
