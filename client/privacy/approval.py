"""Approval of a run by a person at the site (``policy.approval = "each-run"``)."""

from dataclasses import asdict, dataclass
from typing import Any

from fgvc_core.errors import ConfigurationError, FieldmarkError, PeerError, PolicyRefusal
from fgvc_core.recipe import Recipe
from fieldmark.client.announced import announcement, read_announced
from fieldmark.client.privacy.admission import Admission
from fieldmark.client.privacy.budget import read_budget
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


@dataclass(frozen=True)
class Pending:
    """An announced run that nobody has approved.

    Attributes:
        run: Id of the run.
        announced: When, in seconds since 1970.
        recipe: Its recipe.
    """

    run: str
    announced: float
    recipe: Recipe

    def in_words(self, site: Site) -> list[str]:
        """What the run is and what it would cost this site, a line each."""
        recipe = self.recipe
        lines = [
            f"run {self.run}: recipe '{recipe.name}', digest {recipe.digest[:16]}",
            f"at most {recipe.federation.rounds} rounds of {recipe.federation.strategy}, network "
            f"{recipe.model.backbone}, trained: {recipe.model.train}",
        ]
        try:
            plan = read_budget(site, recipe).plan
        except FieldmarkError as error:
            return [*lines, f"its cost cannot be told: {error.what}"]
        assert plan is not None
        if not plan["allowed"]:
            lines.append(f"this site's policy refuses it, whoever approves: {plan['why']}")
        elif plan["epsilon"] is None:
            lines.append("without differential privacy: no epsilon bounds what its updates tell")
        else:
            cap = site.settings.policy.cap
            lines.append(
                f"epsilon {plan['epsilon']:.3g} at delta {plan['delta']:g} for each {plan['unit']};"
                f" the total would be {plan['total_after']:.3g}"
                + ("" if cap is None else f" of {cap:g}")
            )
        return lines


def pending_runs(site: Site) -> list[Pending]:
    """Announced runs that wait for a person here, the last announced first.

    Empty where the policy asks nobody. Runs that ended without this site are listed, too: a site is
    not told of the end.
    """
    if site.settings.policy.approval == "none":
        return []
    ledger = Ledger(site.home, site.data_binding, site.name)
    found = []
    for path in announcement(site.home, "any").parent.glob("*.json"):
        try:
            held = read_announced(site.home, path.stem)
        except FieldmarkError:
            # Damaged: its messages are refused, and site.log says so.
            continue
        if held is not None and not ledger.is_approved(path.stem, held[0].digest):
            found.append(Pending(path.stem, path.stat().st_mtime, held[0]))
    return sorted(found, key=lambda pending: -pending.announced)


def approve_run(site: Site, run: str, digest: str | None = None) -> Approval:
    """Record the approval of an announced run in the ledger.

    It is valid for the announced recipe only, not for another one of the same name.

    Args:
        site: The site.
        run: Id of the run.
        digest: If given, the recipe's digest, or at least 8 digits of its beginning, which must
            match.

    Raises:
        ConfigurationError: if the run was not announced here, or the ledger cannot be written.
        PolicyRefusal: if the digest is another recipe's.
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
    if digest is not None and (len(digest) < 8 or not recipe.digest.startswith(digest.lower())):
        raise PolicyRefusal(
            f"The recipe of run '{run}' has the digest {recipe.digest}, not '{digest[:64]}'.",
            why="What is approved would not be what was agreed on.",
            remedy="Ask the coordinator which recipe was announced; nothing is approved.",
        )
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
