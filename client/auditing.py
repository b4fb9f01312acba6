"""Empirical privacy audit of a site's own mechanism, on its own pictures.

Nothing leaves the site, so nothing is charged. The results are still computed from private data:
they are stored in the home, readable by its owner alone, and showing them to others would be an
uncharged release. The ledger records that an audit was made and of what, but not its results,
because the ledger's hashes leave the site.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from fgvc_core.audit.gradient_attack import attack_gradients
from fgvc_core.audit.planted import Observed
from fgvc_core.audit.result import AuditResult, judge
from fgvc_core.audit.shared_noise import release_in_a_sum
from fgvc_core.audit.sums_attack import Release, attack_sums
from fgvc_core.data.table import UNLABELLED, ExampleTable
from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.experiment import make_learner, pick_device
from fgvc_core.files import private_folder, write_durably
from fgvc_core.privacy.accountant import ADJACENCY
from fgvc_core.privacy.planning import plan_epsilon, plan_for
from fgvc_core.privacy.sampling import protected_units
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.recipe import Recipe
from fgvc_core.training.compatibility import validate_private
from fgvc_core.training.private import release_sums
from fieldmark.client.privacy.admission import Admission
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.site import Site
from fieldmark.client.weights import site_weights
from fieldmark.client.workspace import site_table

FOLDER = "audits"

Tell = Callable[[int, int], None]
"""Progress callback, called with (releases seen, total releases)."""


def _check_own(recipe: Recipe) -> None:
    """Refuse a recipe whose masked sums are not attacked."""
    privacy = recipe.privacy
    if recipe.secure is not None and privacy is not None and privacy.method != "class-sums":
        raise ConfigurationError(
            f"The recipe '{recipe.name}' has [secure] with privacy.method = '{privacy.method}'; of "
            "masked sums, class sums alone are attacked.",
            why="An audit of this site's noise alone would say nothing about that of a sum over "
            "all sites.",
            remedy="Audit the same recipe without [secure]: the same clipped gradients, at the "
            "same epsilon, with all of the noise added here.",
        )


def audit_site(site: Site, recipe: Recipe, tell: Tell = lambda done, total: None) -> dict[str, Any]:
    """Attack the mechanism with which this site would answer a recipe.

    The recipe is trained locally from its own start, on canaries and about half of the site's
    units, each included by a fair coin. The attack guesses the coins from the model and all
    releases.

    Args:
        site: An opened home.
        recipe: Recipe with ``[privacy]``.
        tell: Progress callback.

    Returns:
        Plain values: ``claimed``, ``canaries``, ``pictures``, ``holds`` and ``in_words``, a list of
        lines.

    Raises:
        ConfigurationError: if neither recipe nor policy asks for differential privacy, or its
            target cannot be met.
        PolicyRefusal: if the policy does not allow such a run.
        DataError: if the site's pictures are missing or invalid, or do not fit the recipe.
    """
    _check_own(recipe)
    ledger = Ledger(site.home, site.data_binding, site.name)
    privacy = Admission(site, ledger).protection(recipe)
    if privacy is None:
        raise ConfigurationError(
            f"The recipe '{recipe.name}' has no [privacy], and this site's policy adds none.",
            why="Without differential privacy there is no claim that an audit could refute.",
            remedy="Add a [privacy] section; simulations/recipes/audit.toml has one.",
        )
    claimed = plan_epsilon(privacy, recipe.federation.rounds)
    observed = _attack(site, recipe, privacy, tell)
    verdict = judge(observed, claimed, privacy.delta, recipe.audit)
    found = _as_json(site, recipe, privacy, observed, verdict)
    found["in_words"] = _in_words(recipe, privacy, observed, verdict)
    _keep(site, found)
    ledger.note(
        "audited",
        {
            "name": recipe.name,
            "recipe_digest": recipe.digest,
            "claimed_epsilon": claimed,
            "claimed_delta": privacy.delta,
            "canaries": verdict.canaries.canaries,
            "confidence": verdict.confidence,
        },
    )
    return found


def _attack(site: Site, recipe: Recipe, privacy: PrivacySettings, tell: Tell) -> Observed:
    torch.set_num_threads(site.settings.resources.threads)
    table = _own_table(site, recipe)
    device = pick_device(site.settings.resources.device)
    learner = make_learner(recipe, table.num_classes, device, site_weights(site, recipe))
    privacy = validate_private(learner, privacy)
    examples = learner.examples(table, site.cache)
    contents = [table.content_key(i) for i in range(len(table))]
    units_N = protected_units(privacy.unit, contents, table.subjects)
    rounds = recipe.federation.rounds
    if privacy.method == "class-sums":
        release: Release = release_sums
        if recipe.secure is not None:
            release = partial(release_in_a_sum, recipe.secure.rules)
        return attack_sums(learner, examples, units_N, privacy, recipe.audit, rounds, release)
    return attack_gradients(
        learner,
        examples,
        units_N,
        privacy,
        recipe.audit,
        rounds,
        site.settings.data.units,
        tell,
    )


def _own_table(site: Site, recipe: Recipe) -> ExampleTable:
    """All labeled pictures of the site; an audit needs no validation split."""
    table = site_table(site, recipe)
    if site.rows is None:
        own = table.where("train")
    else:
        if site.rows.max(initial=-1) >= len(table):
            raise _other_data(site, f"row {site.rows.max()} of {len(table)}")
        own = table.take(site.rows)
        if (own.labels_N == UNLABELLED).any():
            raise _other_data(site, "a picture without a label")
    if not len(own):
        raise DataError(
            f"The site '{site.name}' has no picture in this recipe's data set.",
            why="Membership is inferred on the site's own pictures.",
            remedy="Audit with a recipe over the data that site.toml names.",
        )
    return own


def _other_data(site: Site, what: str) -> DataError:
    return DataError(
        f"The rows of the simulated site '{site.name}' do not fit this recipe's data set: {what}.",
        why="rows.json numbers the pictures of the data set that the home was made for.",
        remedy="Set the recipe's [data] to that of the simulation, for instance "
        "--set data.fieldmarks_train=1500.",
    )


def _as_json(
    site: Site, recipe: Recipe, privacy: PrivacySettings, observed: Observed, verdict: AuditResult
) -> dict[str, Any]:
    canaries, pictures, attack = verdict.canaries, verdict.pictures, verdict.membership
    events = plan_for(privacy, recipe.federation.rounds, recipe.sharers)
    return {
        "site": site.name,
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "internal": True,
        "holds": verdict.holds,
        "can_refute": verdict.can_refute,
        "confidence": verdict.confidence,
        "lower_bound": verdict.lower_bound,
        "claimed": {
            "epsilon": verdict.claimed,
            "delta": verdict.delta,
            "unit": privacy.unit,
            "adjacency": ADJACENCY,
            "events": [event.as_json() for event in events],
        },
        "canaries": {
            "count": canaries.canaries,
            "asked_for": observed.wanted,
            "norm": recipe.audit.norm,
            "kind": recipe.audit.kind if observed.engine == "loop" else "features",
            "seed": recipe.audit.seed,
            "engine": observed.engine,
            "releases": observed.releases,
            "epsilon": canaries.epsilon,
            "guesses": canaries.guesses,
            "correct": canaries.correct,
            "most_provable": verdict.provable,
        },
        "pictures": {
            "epsilon": pictures.epsilon,
            "guesses": pictures.guesses,
            "correct": pictures.correct,
            "members": attack.members,
            "others": attack.others,
            "auc": attack.auc,
            "found_at_false_alarms": {f"{rate:g}": share for rate, share in attack.found.items()},
            "epsilon_clopper_pearson": attack.epsilon,
        },
    }


def _in_words(
    recipe: Recipe, privacy: PrivacySettings, observed: Observed, verdict: AuditResult
) -> list[str]:
    canaries, pictures, attack = verdict.canaries, verdict.pictures, verdict.membership
    sure = f"{100 * verdict.confidence:g} %"
    lines = [
        f"attacked: '{recipe.name}', {observed.releases} "
        f"{'releases' if observed.releases > 1 else 'release'} ({observed.engine}), with "
        f"{canaries.canaries:,} canaries of {recipe.audit.norm:g} clipping norms, each in by a "
        "fair coin",
        f"claimed:  epsilon {verdict.claimed:.3f} at delta {verdict.delta:g}, unit {privacy.unit}",
        f"proven:   epsilon >= {canaries.epsilon:.3f} from the canaries "
        f"({canaries.correct} of {canaries.guesses} guesses right)",
        f"          epsilon >= {pictures.epsilon:.3f} from the site's own units "
        f"({pictures.correct} of {pictures.guesses} right); both hold at {sure}",
    ]
    if recipe.secure is not None:
        rules = recipe.secure.rules
        lines.insert(
            1,
            f"sum:      over {rules.least} sites, of which {rules.colluding} tell the attacker "
            "their noise and all others their pictures",
        )
    if attack.auc is not None:
        found = ", ".join(
            f"{100 * share:.1f} % found at {100 * rate:g} % false alarms"
            for rate, share in attack.found.items()
        )
        lines.append(
            f"members:  {attack.members} units learned from, {attack.others} not: AUC "
            f"{attack.auc:.3f}, {found}; epsilon >= {attack.epsilon:.3f} by Clopper-Pearson, were "
            "units independent trials"
        )
    if canaries.canaries < observed.wanted:
        lines.append(
            f"room:     {observed.wanted:,} canaries were asked for; this model has room for "
            f"{canaries.canaries:,}"
        )
    lines.append(_conclusion(verdict))
    lines.append(
        "internal: computed from this site's pictures; to show it to others would be a release "
        "that no budget has paid for"
    )
    return lines


def _conclusion(verdict: AuditResult) -> str:
    if not verdict.holds:
        return (
            f"BROKEN:   {verdict.lower_bound:.3f} is proven and {verdict.claimed:.3f} claimed; let "
            "nothing leave this site until the mechanism is mended"
        )
    if not verdict.can_refute:
        return (
            f"too few:  nothing contradicts the claim, and nothing could have: with "
            f"{verdict.canaries.canaries:,} canaries no more than {verdict.provable:.2f} can be "
            "proven, were the noise off. At epsilon 8 no practical number is enough: audit the "
            "mechanism at epsilon 2 or below"
        )
    return (
        f"holds:    nothing contradicts the claim; up to {verdict.provable:.2f} could have been "
        "proven, were the noise off. An error of a factor of two would not show: unit tests hold "
        "that"
    )


def _keep(site: Site, found: dict[str, Any]) -> None:
    folder = site.home / FOLDER
    private_folder(folder)
    name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    write_durably(folder / f"{name}.json", (json.dumps(found, indent=1) + "\n").encode())
