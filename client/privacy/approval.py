"""Approval of a run by a person at the site (``policy.approval = "each-run"``)."""

from dataclasses import asdict, dataclass
from typing import Any

from fgvc_core.errors import ConfigurationError, PeerError
from fieldmark.client.announced import announcement, read_announced
from fieldmark.client.privacy.admission import Admission
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.site import Site


@dataclass(frozen=True)
class Approval:
    """Approval of a run.

    Attributes:
        run: Id of the run.
        recipe: Name of the recipe.
        recipe_digest: Digest of the recipe; the approval is valid for no other.
        epsilon: Epsilon of the run at this site, or None without differential privacy.
        delta: Delta of that epsilon.
        unit: Protected unit.
    """

    run: str
    recipe: str
    recipe_digest: str
    epsilon: float | None
    delta: float | None
    unit: str | None

    @property
    def in_words(self) -> str:
        """The approval as one line of text."""
        protected = (
            "without differential privacy"
            if self.epsilon is None
            else f"at epsilon {self.epsilon:g}, delta {self.delta:g}, unit {self.unit}"
        )
        return f"approved: run {self.run}, recipe '{self.recipe}', {protected}"

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def approve_run(site: Site, run: str) -> Approval:
    """Record the approval of an announced run in the ledger.

    It is valid for the announced recipe only, not for another one of the same name.

    Raises:
        ConfigurationError: if the run was not announced here, or the ledger cannot be written.
        PolicyRefusal: if the policy refuses the run even with approval.
        DataError: if the ledger or the announcement is damaged.
    """
    try:
        held = read_announced(site.home, run)
    except PeerError:
        held = None
    if held is None:
        known = sorted(p.stem for p in announcement(site.home, "any").parent.glob("*.json"))
        raise ConfigurationError(
            f"Run '{run}' was never announced to this site.",
            why="Only what a coordinator has announced can be approved.",
            remedy=f"Announced so far: {', '.join(known) or 'none'}.",
        )
    recipe, _ = held
    ledger = Ledger(site.home, site.data_binding, site.name)
    privacy = Admission(site, ledger).protection(recipe)
    values = {"run": run, "recipe_digest": recipe.digest, "name": recipe.name}
    try:
        ledger.note("approved", values)
    except OSError as error:
        raise ConfigurationError(
            f"The ledger in '{site.home}' cannot be written: {error.strerror}.",
            why="The run is not approved.",
            remedy="Free space there, or run the command as the user whose home it is.",
        ) from None
    return Approval(
        run=run,
        recipe=recipe.name,
        recipe_digest=recipe.digest,
        epsilon=None if privacy is None else privacy.epsilon,
        delta=None if privacy is None else privacy.delta,
        unit=None if privacy is None else privacy.unit,
    )
