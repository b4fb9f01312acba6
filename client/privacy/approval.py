"""A person's yes or no to a run at the site (``policy.approval = "each-run"``)."""

from dataclasses import asdict, dataclass
from typing import Any

from fgvc_core.errors import ConfigurationError, FieldmarkError, PeerError, PolicyRefusal
from fgvc_core.recipe import Recipe
from fgvc_core.words import counted
from fieldmark.client.announced import announcement, read_announced
from fieldmark.client.privacy.admission import Admission
from fieldmark.client.privacy.budget import read_budget
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.site import Site

LEAST_DIGITS = 16
"""Fewest hexadecimal digits that name a recipe: a coordinator can make a second recipe whose digest
begins with the same 8, and not with the same 16."""

SHOWN_DIGITS = 32
"""Digits of a proposed command: no two recipes can be made whose digests begin with the same."""

MOST_SHOWN = 5
"""Most waiting runs that are read and shown; a coordinator may announce hundreds."""


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
        class_names: Its classes.
    """

    run: str
    announced: float
    recipe: Recipe
    class_names: tuple[str, ...]

    @property
    def arguments(self) -> str:
        """Arguments of ``site approve`` that mean this run and this recipe, whatever comes."""
        return f"{self.run} --digest {self.recipe.digest[:SHOWN_DIGITS]}"

    def in_words(self, site: Site) -> list[str]:
        """What the run is and what it would cost this site, a line each."""
        return self.priced(site)[0]

    def priced(self, site: Site) -> tuple[list[str], dict[str, Any]]:
        """:meth:`in_words`, and the cost as by :func:`read_budget`; {} if it cannot be told."""
        recipe = self.recipe
        lines = [
            f"run {self.run}: recipe '{recipe.name}', digest {recipe.digest}",
            f"at most {counted(recipe.federation.rounds, 'round')} of "
            f"{recipe.federation.strategy}, network "
            f"{recipe.model.title}, trained: {recipe.model.train}, "
            f"{len(self.class_names)} classes",
        ]
        try:
            plan = read_budget(site, recipe).plan
        except FieldmarkError as error:
            return [*lines, f"its cost cannot be told: {error.what}"], {}
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
        if recipe.personal.method == "own-sums" and plan["allowed"]:
            lines.append(
                "this site also makes a head of its own from its exact sums, for itself: it costs "
                "nothing, and neither the head nor its scores leave"
            )
        if recipe.secure is not None and plan["allowed"] and plan["epsilon"] is None:
            lines.append(
                f"its updates are added up under masks, over {recipe.secure.least} sites or more: "
                "the coordinator sees the sums of its rounds, as long as at most "
                f"{recipe.secure.colluding} of all sites work with it; where the sites of two "
                "rounds differ, so do their sums, by what the others sent"
            )
        elif recipe.secure is not None and plan["allowed"]:
            alone = plan["epsilon_alone"]
            lines.append(
                f"its noise is shared in sums over {recipe.secure.least} sites or more, and that "
                f"holds as long as at most {recipe.secure.colluding} of all sites work with the "
                "coordinator; if all others did, "
                + ("nothing is promised" if alone is None else f"epsilon {alone:.3g}")
            )
        return lines, plan


def waiting_runs(site: Site) -> list[tuple[str, float]]:
    """Announced runs that wait for a person here, and when they were announced, the last first.

    Empty where the policy asks nobody. A run that the policy refused at its last roll call does not
    wait: no yes would let it in. Runs that ended without this site are listed, since a site is not
    told of the end. No announcement is opened.
    """
    if site.settings.policy.approval == "none":
        return []
    ledger = Ledger(site.home, site.data_binding, site.name)
    found = [
        (path.stem, path.stat().st_mtime)
        for path in announcement(site.home, "any").parent.glob("*.json")
        if not (ledger.was_decided(path.stem) or ledger.was_turned_down(path.stem))
    ]
    return sorted(found, key=lambda one: -one[1])


def pending_runs(site: Site, most: int = MOST_SHOWN) -> list[Pending]:
    """The last announced of :func:`waiting_runs`, read; at most ``most``."""
    found: list[Pending] = []
    for run, when in waiting_runs(site):
        if len(found) == most:
            break
        try:
            held = read_announced(site.home, run)
        except FieldmarkError:
            # Damaged: its messages are refused, and site.log says so.
            continue
        if held is not None:
            found.append(Pending(run, when, *held))
    return found


def waiting_in_words(site: Site) -> list[dict[str, Any]]:
    """The :func:`pending_runs` as plain values, each with what it is and costs in words.

    Reading their recipes imports torch.
    """
    found = []
    for pending in pending_runs(site):
        words, plan = pending.priced(site)
        found.append(
            {
                "run": pending.run,
                "recipe": pending.recipe.name,
                "digest": pending.recipe.digest,
                "announced": pending.announced,
                "arguments": pending.arguments,
                "in_words": words,
                "allowed": bool(plan.get("allowed")),
                "total_after": plan.get("total_after"),
            }
        )
    return found


def approve_run(
    site: Site, run: str, digest: str | None = None, shown: Pending | None = None
) -> Approval:
    """Record the approval of an announced run in the ledger.

    It is valid for the announced recipe only, not for another one of the same name.

    Args:
        site: The site.
        run: Id of the run.
        digest: If given, the recipe's digest, or at least ``LEAST_DIGITS`` digits of its beginning,
            which must match.
        shown: If given, what a person was shown of this run, which must be what is announced.

    Raises:
        ConfigurationError: if the run was not announced here, or the ledger cannot be written.
        PolicyRefusal: if the digest is another recipe's, or another one was shown.
        PolicyRefusal: if the policy refuses the run even with approval.
        DataError: if the ledger or the announcement is damaged.
    """
    recipe = _meant(site, run, digest, shown)
    ledger = Ledger(site.home, site.data_binding, site.name)
    privacy = Admission(site, ledger).protection(recipe)
    _record(ledger, "approved", run, recipe)
    return Approval(
        run=run,
        recipe=recipe.name,
        recipe_digest=recipe.digest,
        epsilon=None if privacy is None else privacy.epsilon,
        delta=None if privacy is None else privacy.delta,
        unit=None if privacy is None else privacy.unit,
    )


def decline_run(site: Site, run: str, digest: str | None = None) -> Recipe:
    """Record in the ledger that a person has declined an announced run.

    From then on the run's requests are refused, also if it had been approved before. What has left
    has left. A later approval counts again.

    Args:
        site: The site.
        run: Id of the run.
        digest: As for :func:`approve_run`.

    Returns:
        The declined recipe.

    Raises:
        ConfigurationError: if the run was not announced here, or the ledger cannot be written.
        PolicyRefusal: if the digest is another recipe's.
        DataError: if the ledger or the announcement is damaged.
    """
    recipe = _meant(site, run, digest, None)
    _record(Ledger(site.home, site.data_binding, site.name), "declined", run, recipe)
    return recipe


def _meant(site: Site, run: str, digest: str | None, shown: Pending | None) -> Recipe:
    """The recipe of an announced run, if it is the one that a person means."""
    try:
        held = read_announced(site.home, run)
    except PeerError:
        held = None
    if held is None:
        known = sorted(p.stem for p in announcement(site.home, "any").parent.glob("*.json"))
        raise ConfigurationError(
            f"Run '{run}' was never announced to this site.",
            why="Only what a coordinator has announced can be approved or declined.",
            remedy=f"Announced so far: {', '.join(known[:10]) or 'none'}"
            + (f", and {len(known) - 10} more." if len(known) > 10 else "."),
        )
    recipe, class_names = held
    if shown is not None and (recipe.digest, class_names) != (
        shown.recipe.digest,
        shown.class_names,
    ):
        raise PolicyRefusal(
            f"Run '{run}' is not announced any more as it was shown.",
            why="What is approved would not be what was read.",
            remedy="Look again: fieldmark site approve; nothing is approved.",
        )
    if digest is not None and not _means(digest, recipe):
        raise PolicyRefusal(
            f"The recipe of run '{run}' has the digest {recipe.digest}, not '{digest[:64]}'.",
            why="What is approved would not be what was agreed on; fewer than "
            f"{LEAST_DIGITS} digits may be another recipe's, too.",
            remedy="Ask the coordinator which recipe was announced; nothing is approved.",
        )
    return recipe


def _record(ledger: Ledger, kind: str, run: str, recipe: Recipe) -> None:
    try:
        ledger.note(kind, {"run": run, "recipe_digest": recipe.digest, "name": recipe.name})
    except OSError as error:
        raise ConfigurationError(
            f"The ledger in '{ledger.path.parent}' cannot be written: {error.strerror}.",
            why=f"The run is not {kind}.",
            remedy="Free space there, or run the command as the user whose home it is.",
        ) from None


def _means(digest: str, recipe: Recipe) -> bool:
    return len(digest) >= LEAST_DIGITS and recipe.digest.startswith(digest.lower())
