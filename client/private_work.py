"""What a site does with a request under differential privacy.

Nothing computed from the pictures goes into a reply but what the plan's event pays for:
no counts, no loss, no scores, no time.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from client.encoding import UpdateEncoder
from client.privacy.gate import Departure, Gate
from client.privacy.outbox import Payload
from client.site import Site
from client.work import at_the_desk, echo
from fgvc_core.errors import PeerError, PolicyRefusal
from fgvc_core.privacy.events import PrivacyEvent, take
from fgvc_core.privacy.planning import plan_for
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.messages import Request
from fgvc_core.recipe import Recipe
from fgvc_core.training.private import PrivateTraining, noisy_scores, release_sums
from fgvc_core.training.schedule import Stretch
from fgvc_core.wire.arrays import PackedTensor
from fgvc_core.wire.decode import decode_model


def answer_protected(
    site: Site,
    gate: Gate,
    request: Request,
    recipe: Recipe,
    privacy: PrivacySettings,
    class_names: tuple[str, ...],
    packed: Mapping[str, PackedTensor],
) -> Departure:
    """Answer a round's request under differential privacy.

    Raises:
        PolicyRefusal: if the plan or the budget does not hold it.
        PeerError: if it asks for what the recipe does not have.
    """
    started = time.monotonic()
    event = _event_of(request, recipe, privacy)

    def work() -> Payload:
        return _work(site, request, recipe, privacy, class_names, packed, event)

    encode = UpdateEncoder(site.home, request, recipe, packed)
    gate.check_size(encode.nbytes)
    departure = gate.protected_round(request, recipe, event, work, encode)
    hold = site.settings.policy.reply_seconds - (time.monotonic() - started)
    if hold > 0:
        time.sleep(hold)
    return departure


def _event_of(request: Request, recipe: Recipe, privacy: PrivacySettings) -> PrivacyEvent | None:
    """What the answer costs."""
    if request.kind == "release":
        wanted: str = request.phase
    elif request.kind == "train":
        wanted = "step"
    else:
        wanted = "scores"
    planned = {event.purpose: event for event in plan_for(privacy, recipe.federation.rounds)}
    event = planned.get(wanted)  # type: ignore[call-overload]
    if event is None:
        if request.kind == "score":
            return None
        raise PolicyRefusal(
            f"A '{request.kind}' request ({wanted or 'no phase'}) is not part of this run's plan.",
            why="A site releases what was announced, and nothing beyond.",
            remedy="Ask for what privacy.method says.",
        )
    return take(event, privacy.steps if wanted == "step" else 1)


def _work(
    site: Site,
    request: Request,
    recipe: Recipe,
    privacy: PrivacySettings,
    class_names: tuple[str, ...],
    packed: Mapping[str, PackedTensor],
    event: PrivacyEvent | None,
) -> Payload:
    fields: dict[str, Any] = {
        **echo(site, request),
        "code": "ok",
        "examples": site.settings.data.units if request.kind == "train" else 0,
    }
    if event is None:
        return Payload(fields, {})
    with at_the_desk(site, recipe, class_names, privacy.unit) as (learner, specs, examples):
        assert examples.train_units is not None
        assert examples.validation_units is not None
        learner.load(decode_model(packed, specs, recipe.wire))
        if request.kind == "release":
            released = release_sums(learner, examples.train, examples.train_units, event, privacy)
            return Payload(fields, {event.purpose: released.astype(np.float32)})
        if request.kind == "score":
            fields["noisy_scores"] = noisy_scores(
                learner,
                examples.validation,
                examples.validation_units,
                event,
                recipe.evaluate.batch_size,
            )
            return Payload(fields, {})
        if request.proximal_mu:
            raise PeerError("A pull towards the received model is not part of private steps.")
        training = PrivateTraining(learner, examples.train, examples.train_units, privacy)
        training.run(
            event, site.settings.data.units, Stretch(request.round, recipe.federation.rounds)
        )
        return Payload(fields, learner.tensors())
