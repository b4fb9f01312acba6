"""Admission: whether a site takes part in a run, by policy, approval, ledger memory and budget.

All checks depend on the request, the recipe, ``site.toml`` and the ledger, never on a picture, so a
refusal reveals nothing about the pictures.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from fgvc_core.configuration import refuse_paths
from fgvc_core.errors import FieldmarkError, PolicyRefusal
from fgvc_core.privacy.accountant import PrivacyEvent
from fgvc_core.privacy.odometer import Rule, choose_rule
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.keys import fingerprint
from fgvc_core.protocol.messages import Request
from fgvc_core.protocol.stages import ROLL_CALL
from fgvc_core.recipe import Recipe
from fgvc_core.recipe_rules import refuse_unprotectable
from fieldmark.client.announced import read_announcement, recall
from fieldmark.client.privacy.data_claims import DataClaim, Register
from fieldmark.client.privacy.ledger import Ledger, in_numbers
from fieldmark.client.privacy.policy import (
    check_counts,
    check_secure,
    check_standing,
    check_subject,
    protection,
)
from fieldmark.client.reading import kind_of, subject_column
from fieldmark.client.site import Site
from fieldmark.client.weights import check_weights

UNLIMITED = 1e9
"""Cap of a site whose policy sets none."""


class ApprovalMissing(PolicyRefusal):
    """No person at the site has approved the run yet."""


@dataclass(frozen=True)
class Admission:
    """Admission checks of one site.

    Attributes:
        site: The site.
        ledger: Its ledger.
    """

    site: Site
    ledger: Ledger

    @property
    def cap(self) -> tuple[float, float]:
        """(epsilon, delta) that the whole ledger must not exceed."""
        policy = self.site.settings.policy
        return (UNLIMITED if policy.cap is None else policy.cap), policy.delta

    @property
    def alone_cap(self) -> float:
        """Epsilon that the ledger must not exceed if all other sites work with the attacker."""
        cap = self.site.settings.policy.alone_cap
        return math.inf if cap is None else cap

    def rule_for(self, events: tuple[PrivacyEvent, ...]) -> Rule:
        """Rule for adding up costs if a run with these events comes next.

        Fixed by the first charge; before it, chosen for this run and the cap.
        """
        policy = self.site.settings.policy
        return self.ledger.rule() or choose_rule(events, policy.cap, policy.delta)

    def protection(self, recipe: Recipe) -> PrivacySettings | None:
        """Differential privacy with which this site works on a recipe, or None.

        Raises:
            PolicyRefusal: if it does not take part at all.
        """
        check_secure(self.site.settings.policy, recipe)
        privacy = self.protection_of_scores(recipe)
        check_weights(self.site, recipe)
        if privacy is None:
            check_counts(self.site.settings.policy, recipe)
            return None
        # policy.own can add privacy to a recipe that was written without it.
        refuse_unprotectable(recipe, privacy)
        return privacy

    def protection_of_scores(self, recipe: Recipe) -> PrivacySettings | None:
        """As :meth:`protection`, for scoring a finished model without training.

        Scoring treats pictures independently, however the model was trained.

        Raises:
            PolicyRefusal: if this site does not take part.
        """
        data, policy = self.site.settings.data, self.site.settings.policy
        if self.site.rows is None:
            refuse_paths(recipe)
        check_standing(policy, data.units, data.pictures, datetime.now(UTC).date())
        privacy = protection(policy, recipe)
        if privacy is None:
            return None
        if privacy.unit == "subject":
            check_subject(kind_of(self.site, recipe), subject_column(self.site, recipe))
        if data.units < 1:
            raise PolicyRefusal(
                "data.units in site.toml is 0: no public number of units is declared.",
                why="Noise, sampling rate and weight are computed from it; the true one is secret.",
                remedy="Declare in site.toml about how many units these data hold.",
            )
        return privacy

    def tells_causes(self, request: Request) -> bool:
        """Whether the class of a failure's cause may leave: that of an unprotected, known run.

        Under differential privacy one picture could decide what runs out, and with it the class.
        """
        try:
            if request.kind == ROLL_CALL.kind:
                recipe = read_announcement(request)
            else:
                recipe, _ = recall(self.site.home, request)
            return protection(self.site.settings.policy, recipe) is None
        except FieldmarkError:
            return False

    def check_budget(
        self, privacy: PrivacySettings, name: str, events: tuple[PrivacyEvent, ...]
    ) -> None:
        """Check that a new run fits into the remaining budget.

        Args:
            privacy: Privacy settings of the run.
            name: Name of the run's recipe, for the refusal.
            events: Releases of the run.

        Raises:
            PolicyRefusal: if the unit differs, or the cap would be exceeded.
        """
        self.ledger.check_unit(privacy.unit)
        epsilon, delta = self.cap
        total, how = self.ledger.total(delta, events, self.rule_for(events))
        if total > epsilon:
            spent, _ = self.ledger.total(delta)
            raise PolicyRefusal(
                f"policy.epsilon_cap = {epsilon:g} at delta {delta:g}: {spent:.4g} is spent, and "
                f"run '{name}' would bring the total to {total:.4g} ({how}).",
                why="The budget of these data would be exceeded.",
                remedy="Ask for a smaller privacy.epsilon; 'fieldmark site budget' says what "
                "is left.",
            )
        if self.alone_cap == math.inf:
            return
        total, how = self.ledger.total_alone(delta, events)
        if total > self.alone_cap:
            raise PolicyRefusal(
                f"policy.epsilon_alone_cap = {self.alone_cap:g} at delta {delta:g}: run '{name}' "
                "would bring what this site's noise alone promises to "
                f"{in_numbers(total, how)}.",
                why="If all other sites worked with the coordinator, that is what would hold.",
                remedy="Ask for a smaller privacy.epsilon or secure.most; 'fieldmark site budget' "
                "says what is left.",
            )

    def check_memory(self, request: Request) -> None:
        """Check that the ledger contains the last entry that the coordinator has seen.

        Raises:
            PolicyRefusal: if it does not.
        """
        if request.known_head and not self.ledger.holds(request.known_head):
            raise PolicyRefusal(
                "The coordinator has seen an entry of this site's ledger that is not in it.",
                why="An old copy of the ledger was put back: what was spent since is forgotten.",
                remedy="Restore the newest copy of the site's home. If there is none, ask the "
                "coordinator for its statement, and charge what is missing: fieldmark site ledger "
                "recover DIR STATEMENT.",
            )

    def check_approval(self, request: Request, name: str) -> None:
        """Check that a person has approved this run, if the policy requires it.

        Raises:
            ApprovalMissing: if nobody has.
            PolicyRefusal: if a person has declined it.
        """
        if self.site.settings.policy.approval == "none":
            return
        if self.ledger.is_declined(request.run, request.recipe_digest):
            raise PolicyRefusal(
                f"policy.approval = 'each-run': a person at the site has declined run "
                f"'{request.run}' ({name}).",
                remedy="Whoever thinks better of it says so at the site: fieldmark site approve "
                f"DIR {request.run} --digest {request.recipe_digest[:32]}",
            )
        if not self.ledger.is_approved(request.run, request.recipe_digest):
            raise ApprovalMissing(
                f"policy.approval = 'each-run': run '{request.run}' ({name}) is not approved.",
                remedy="A person at the site says yes with: fieldmark site approve DIR "
                f"{request.run} --digest {request.recipe_digest[:32]}",
            )

    def claim_data(self, *, afresh: bool = False) -> None:
        """Register this ledger for its data; at most one ledger is charged for the same data.

        Args:
            afresh: Whether to sample the data's content. Never for a message, whose answer must not
                depend on the pictures.

        Raises:
            PolicyRefusal: if this ledger belongs to other data, another home has the data, or this
                ledger is an old copy.
            ConfigurationError: if the register cannot be written.
        """
        # First, because a home must not claim data that its ledger is not bound to.
        self.ledger.check_binding()
        claim = claim_of(self.site, *self.ledger.head())
        if claim is None:
            return
        register = Register()
        if afresh:
            claim = register.sampled(claim)
        register.claim(claim, self.ledger.holds, self._head)

    def _head(self) -> tuple[int, str, float]:
        """Length, head and total epsilon of the ledger."""
        return *self.ledger.head(), self.ledger.total(self.site.settings.policy.delta)[0]

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Block all other copies of this home while its ledger is written in the body.

        Raises:
            PolicyRefusal: if this is a second or an older copy, or its ledger belongs to other
                data.
            ConfigurationError: if the register cannot be written.
        """
        self.ledger.check_binding()
        claim = claim_of(self.site, *self.ledger.head())
        if claim is None:
            yield
            return
        with Register().guarding(claim, self.ledger.holds, self._head):
            yield


def claim_of(site: Site, length: int, head: str) -> DataClaim | None:
    """Claim of a site to its data; None for a simulated site, which shares a data set."""
    if site.rows is not None:
        return None
    key = fingerprint(site.key.public_key())
    return DataClaim.of(site.settings.data.path or "", site.home, key, head, length)
