"""External validation at a site: evaluate the model of a validation kit and sign the results.

A person at the site runs this; no coordinator is involved. The reply passes the gate like any
other: as far as the policy allows without differential privacy, and as two charged noisy counts
with it. Repeating a kit returns the stored answer at no cost.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fgvc_core.data.labels import LeftOut
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import ConfigurationError, DataError, PeerError, PolicyRefusal, nearest
from fgvc_core.experiment import pick_device
from fgvc_core.export.kit import Kit, open_kit, read_body
from fgvc_core.files import write_privately
from fgvc_core.inference.judging import (
    Judged,
    Part,
    data_of,
    logits_of,
    part_known,
    read_table,
    seen_classes,
)
from fgvc_core.inference.scorecard import Scorecard, scorecard
from fgvc_core.models.weight_names import find_weights, kind_of
from fgvc_core.privacy.accountant import PrivacyEvent, noise_for
from fgvc_core.privacy.sampling import protected_units
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.keys import has_fingerprint, public_text, read_public, short_fingerprint
from fgvc_core.protocol.messages import (
    ClassFigures,
    Figures,
    Interval,
    KitBody,
    Request,
    ValidationReply,
    new_nonce,
)
from fgvc_core.recipe import Recipe, parse_recipe, toml_value
from fgvc_core.training.private import noisy_scores
from fieldmark.client.job import echo
from fieldmark.client.privacy.gate import Departure, Gate
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.privacy.policy import check_validation
from fieldmark.client.reading import SiteData, load_site_table
from fieldmark.client.reading import kind_of as kind_of_data
from fieldmark.client.recognition import with_reading
from fieldmark.client.site import Site
from fieldmark.client.weights import weights_folder
from fieldmark.client.workspace import leaves_out, log_left_out


@dataclass(frozen=True)
class Validation:
    """Answer to a validation kit.

    Attributes:
        departure: The signed reply.
        reply: Its parsed body.
    """

    departure: Departure
    reply: ValidationReply

    def write(self, path: Path) -> None:
        """Write the signed answer to a file.

        Raises:
            ConfigurationError: if it cannot be written.
        """
        sealed = self.departure.sealed
        values = {"body": sealed.text, "signature": sealed.signature.hex()}
        try:
            write_privately(path, json.dumps(values, indent=1) + "\n")
        except OSError as error:
            raise ConfigurationError(
                f"--out '{path}' cannot be written: {error.strerror}.",
                why="The answer is in the site's ledger; running this again costs nothing more.",
                remedy="Name a file in a folder that exists and that you may write to.",
            ) from None


def check_issuer(site: Site, body: KitBody, trusted: str | None) -> None:
    """Check that a kit was made by this site's coordinator or by a key that the person trusts.

    Args:
        site: The site.
        body: Body of the kit; its signature was checked.
        trusted: Fingerprint given by a person, short or full, or None.

    Raises:
        PeerError: if another key made it.
    """
    key = read_public(body.issuer)
    if body.issuer == public_text(site.coordinator):
        return
    if trusted is not None and has_fingerprint(key, trusted):
        return
    raise PeerError(
        f"The kit was made by a key that this site does not know: {short_fingerprint(key)}.",
        why="Whoever made it gets the answer's figures.",
        remedy="Ask the sender for the fingerprint by another way, then: --issuer FINGERPRINT",
    )


def validate_kit(
    site: Site,
    path: Path,
    *,
    issuer: str | None = None,
    data: str | None = None,
    overrides: tuple[str, ...] = (),
    part: Part = "all",
    weights: str | None = None,
) -> Validation:
    """Evaluate a kit's model on this site's pictures.

    Args:
        site: The site.
        path: The kit.
        issuer: Fingerprint of the key that made it, if that is not the coordinator's.
        data: Kind of data, overriding ``site.toml`` for this call.
        overrides: ``data.KEY=VALUE`` overrides of the site's own ``[data]`` for this call; never
            its path. Settings that define units cannot change after a charge.
        part: Split to evaluate on.
        weights: Path of weights for the model's frozen part.

    Raises:
        PolicyRefusal: naming the policy setting that forbids it; nothing was charged.
        PeerError: if the kit is not from a trusted key.
        DataError: if kit or data are damaged.
        ConfigurationError: if the model cannot be built, or an override is invalid.
    """
    body, _ = read_body(path)
    check_issuer(site, body, issuer)
    site = _read_as_said(site, data, overrides)
    device = str(pick_device(site.settings.resources.device))
    kit = open_kit(path, device, weights or _own_weights(site, body), read_public(body.issuer))
    gate = Gate(site)
    recipe = _recipe_here(site, kit, data, overrides)
    kind_of_data(site, recipe)
    privacy = gate.admission.protection_of_scores(recipe.announced)
    check_validation(site.settings.policy, privacy is not None)
    request = Request(
        kind="score",
        run=body.kit,
        round=0,
        site=site.name,
        nonce=new_nonce(),
        recipe_digest=kit.digest,
    )
    if site.settings.policy.approval != "none":
        # Running this command is the person's approval; record it.
        values = {"run": request.run, "recipe_digest": request.recipe_digest, "name": body.name}
        gate.ledger.note("approved", values)
    fields: dict[str, Any] = {
        **echo(site, request),
        "code": "ok",
        "public_key": site.public_key,
        "kit_digest": kit.digest,
    }
    if privacy is None:
        card = _score(site, kit, _judged_on(site, kit, recipe, part), _seen_names(kit))
        reply = ValidationReply(**fields, figures=_figures(card))
        departure = gate.release(request, reply, {})
    else:
        _refuse_unseen(kit, body)
        event = _event(privacy)
        gate.announce_validation(request, recipe, body.name, privacy, event)

        def work() -> Payload:
            noisy = _noisy(site, kit, recipe, part, privacy, event)
            return Payload({**fields, "noisy_scores": noisy}, {})

        departure = gate.protected_round(request, recipe, event, work, form=ValidationReply)
    reply_sent = ValidationReply.parse(departure.sealed.text)
    assert isinstance(reply_sent, ValidationReply)
    return Validation(departure, reply_sent)


def _refuse_unseen(kit: Kit, body: KitBody) -> None:
    """Refuse to protect counts over answers of which some can never be right."""
    if len(_seen_names(kit)) != len(body.class_names):
        raise PolicyRefusal(
            "The kit's model has classes that it has never seen.",
            why="Noisy counts are over all of its answers.",
            remedy="Ask for a model of seen classes alone.",
        )


def _own_weights(site: Site, body: KitBody) -> str | None:
    """Path of the weights that a kit names by digest, if this site has them."""
    wanted = parse_recipe(body.recipe, where="the kit's recipe").model.weights
    found = find_weights(wanted, [weights_folder(site)]) if kind_of(wanted) == "digest" else None
    return None if found is None else str(found)


def _read_as_said(site: Site, kind: str | None, overrides: tuple[str, ...]) -> Site:
    """Site with its ``[data]`` changed by the overrides, for this call.

    Ledger checks use this site too, so that changed units are noticed.
    """
    if any(text.startswith("data.path=") for text in overrides):
        raise ConfigurationError(
            "--set data.path: the pictures are those that site.toml names.",
            why="What is spent on other pictures would not be in their ledger.",
            remedy="Make a home of its own for the other pictures: fieldmark site new",
        )
    if site.rows is not None or (kind is None and not overrides):
        return site
    said: dict[str, Any] = {} if kind is None else {"kind": kind}
    known = sorted(set(SiteData.model_fields) - {"path", "units", "pictures"})
    for text in overrides:
        key, _, value = text.removeprefix("data.").partition("=")
        if not text.startswith("data.") or key not in known:
            raise ConfigurationError(
                f"--set {text}: only how this site reads its pictures can be changed here.",
                why=f"That is data.KEY for KEY one of {', '.join(known)}.",
                remedy=nearest(key, known) or "For instance: --set data.label_column=species",
            )
        said[key] = toml_value(value)
    return with_reading(site, said)


def _recipe_here(site: Site, kit: Kit, name: str | None, overrides: tuple[str, ...]) -> Recipe:
    """The kit's recipe with this site's data and the stricter of both privacy settings."""
    own, policy = site.settings.data, site.settings.policy
    data = kit.trained.recipe.data
    if site.rows is not None:
        # A simulated site reads its data as the simulation's recipe says.
        data = data_of(kit.trained, overrides, name, own.path)
        if own.subject_column is not None:
            data = data.model_copy(update={"subject_column": own.subject_column})
    offered = kit.body.privacy
    privacy = None
    if policy.demand:
        most = policy.delta if policy.own is None else policy.own.delta
        subjects = policy.own is not None and policy.own.unit == "subject"
        privacy = PrivacySettings(
            epsilon=offered.epsilon,
            delta=min(offered.delta, most),
            unit=policy.unit or ("subject" if subjects else offered.unit),
        )
    return kit.trained.recipe.model_copy(update={"data": data, "privacy": privacy})


def _seen_names(kit: Kit) -> tuple[str, ...]:
    seen_K = seen_classes(kit.trained.recipe, kit.body.class_names)
    return tuple(kit.body.class_names[k] for k in seen_K)


def _table(
    site: Site, kit: Kit, recipe: Recipe, part: Part, left_out: LeftOut | None = None
) -> ExampleTable:
    """Labeled pictures to evaluate on; with ``left_out``, faulty rows are left out."""
    names = _seen_names(kit)
    if site.rows is None:
        table = load_site_table(site, recipe, names, left_out)
        table = table.take(np.flatnonzero(table.labels_N >= 0))
        table = table if part == "all" else table.where(part)
        if not len(table) and left_out is None:
            raise DataError(
                f"This site has no labeled pictures in the part '{part}'.",
                remedy="Take --split all, or look at: fieldmark site reading DIR",
            )
        if table.class_names == names:
            return table
    else:
        table = read_table(recipe.data, "all", site.cache)
        held = set(site.rows.tolist())
        table = table.take([i for i, row in enumerate(table.rows.tolist()) if row in held])
    known, _ = part_known(table, names, (), kit.trained.recipe.partition.unseen)
    return known


def _judged_on(site: Site, kit: Kit, recipe: Recipe, part: Part) -> ExampleTable:
    """Table for an evaluation without differential privacy; ``data.faults`` applies."""
    if not leaves_out(site, None):
        return _table(site, kit, recipe, part)
    left_out = LeftOut()
    table = _table(site, kit, recipe, part, left_out)
    table, _ = kit.trained.learner.readable_examples(table, site.cache, left_out)
    log_left_out(site, left_out)
    return table


def _score(site: Site, kit: Kit, table: ExampleTable, names: tuple[str, ...]) -> Scorecard:
    seen_K = seen_classes(kit.trained.recipe, kit.body.class_names)
    batch = kit.trained.recipe.evaluate.batch_size
    logits_NK = logits_of(
        kit.trained.learner, table, site.cache, batch, threads=site.settings.resources.threads
    )[:, seen_K]
    judged = Judged(logits_NK, table.labels_N, table.subjects, table.columns)
    return scorecard(judged, names, confidence=kit.confidence)


def _figures(card: Scorecard) -> Figures:
    return Figures(
        examples=card.counts.examples,
        subjects=card.subjects,
        top1=Interval(**card.top1.as_json()),
        top5=card.top5,
        macro_precision=card.counts.macro_precision,
        macro_recall=card.counts.macro_recall,
        macro_f1=Interval(**card.macro_f1.as_json()),
        ece=card.reliable.ece,
        loss=card.counts.loss,
        classes={
            one["name"]: ClassFigures(**{k: v for k, v in one.items() if k != "name"})
            for one in card.classes()
        },
    )


def _event(privacy: PrivacySettings) -> PrivacyEvent:
    """Privacy event that costs exactly the offered epsilon."""
    noise = noise_for(
        lambda multiplier: [PrivacyEvent("scores", multiplier)], privacy.epsilon, privacy.delta
    )
    return PrivacyEvent("scores", noise)


def _noisy(
    site: Site,
    kit: Kit,
    recipe: Recipe,
    part: Part,
    privacy: PrivacySettings,
    event: PrivacyEvent,
) -> dict[str, float]:
    """Noisy counts; whether they can be computed does not depend on any single picture."""
    left_out = LeftOut() if site.rows is None else None
    table = _table(site, kit, recipe, part, left_out)
    if left_out is not None:
        table, _ = kit.trained.learner.readable_examples(table, site.cache, left_out)
        log_left_out(site, left_out)
    contents = [table.content_key(i) for i in range(len(table))]
    units_N = protected_units(privacy.unit, contents, table.subjects)
    units_N = np.unique(units_N, return_inverse=True)[1].astype(np.int64)
    examples = kit.trained.learner.examples(table, site.cache)
    return noisy_scores(kit.trained.learner, examples, units_N, event)
