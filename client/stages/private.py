"""What a site does with a request under differential privacy.

Nothing computed from the pictures goes into a reply but what the plan's event pays for:
no counts, no loss, no scores, no time.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import PeerError, PolicyRefusal
from fgvc_core.privacy.events import PrivacyEvent, take
from fgvc_core.privacy.planning import plan_for
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.messages import Request
from fgvc_core.recipe import Recipe
from fgvc_core.training.private import PrivateTraining, noisy_scores, release_sums
from fgvc_core.training.schedule import Stretch
from fgvc_core.training.validation import validate_private
from fgvc_core.wire.arrays import PackedTensor, TensorSpec, spec_of
from fgvc_core.wire.decode import decode_model
from fieldmark.client.encoding import UpdateEncoder
from fieldmark.client.privacy.gate import Departure, Gate
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.site import Site
from fieldmark.client.workspace import at_the_desk, echo, learner_at_the_desk


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

    What is wrong with the recipe or the request is found before anything is charged.

    Raises:
        PolicyRefusal: if the plan or the budget does not hold it, or its training would not
            keep what it promises.
        PeerError: if it asks for what the recipe does not have.
    """
    started = time.monotonic()
    try:
        event = _event_of(request, recipe, privacy)
        received = (
            {} if event is None else _check(site, request, recipe, privacy, class_names, packed)
        )

        def work() -> Payload:
            return _work(site, request, recipe, privacy, class_names, received, event)

        specs = _specs_of_answer(request, event, received)
        encode = UpdateEncoder(site.home, request, recipe, packed)
        return gate.protected_round(request, recipe, event, work, specs, encode)
    finally:
        # After a refusal, too: that the pictures have a fault must not be told by time.
        hold = site.settings.policy.reply_seconds - (time.monotonic() - started)
        if hold > 0:
            time.sleep(hold)


def _event_of(request: Request, recipe: Recipe, privacy: PrivacySettings) -> PrivacyEvent | None:
    """What the answer costs."""
    if request.phase == "personal":
        raise PeerError("Fine-tuning at the sites is not part of this run.")
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


def _check(
    site: Site,
    request: Request,
    recipe: Recipe,
    privacy: PrivacySettings,
    class_names: tuple[str, ...],
    packed: Mapping[str, PackedTensor],
) -> dict[str, NDArray[np.float32]]:
    """The received tensors, if request and model are fit; no picture is touched.

    What the recipe may not ask for was refused when the gate admitted the request.
    """
    if request.kind == "train" and request.phase:
        raise PeerError(f"A '{request.phase}' round is not part of this run.")
    rounds = recipe.federation.rounds
    if not (request.kind == "score" or 1 <= request.round <= rounds):
        raise PolicyRefusal(
            f"Round {request.round} is not one of the {rounds} of this run.",
            why="A site releases what was announced, and nothing beyond.",
            remedy="Start a new run.",
        )
    if request.proximal_mu:
        raise PeerError("A pull towards the received model is not part of private steps.")
    with learner_at_the_desk(site, recipe, class_names) as (learner, specs):
        validate_private(learner, privacy)
        return decode_model(packed, specs, recipe.wire)


def _specs_of_answer(
    request: Request, event: PrivacyEvent | None, received: Mapping[str, NDArray[np.float32]]
) -> dict[str, TensorSpec]:
    """What the answer's tensors will be, given those that were received."""
    if event is None or request.kind == "score":
        return {}
    if request.kind == "train":
        return {name: spec_of(tensor) for name, tensor in received.items()}
    if set(received) != {"head.centre", "head.weight", "head.bias"}:
        raise PolicyRefusal(
            "privacy.method = 'class-sums' needs a frozen backbone and model.head = 'subspace'.",
            why="Sums of vectors of bounded length in a public subspace are what it releases.",
            remedy="Set model.train = 'head' and model.head = 'subspace', or privacy.method = "
            "'gradients'.",
        )
    classes, directions = received["head.weight"].shape
    shape = (directions,) if event.purpose == "centre" else (classes, directions + 1)
    return {event.purpose: TensorSpec("float32", shape)}


def _work(
    site: Site,
    request: Request,
    recipe: Recipe,
    privacy: PrivacySettings,
    class_names: tuple[str, ...],
    received: dict[str, NDArray[np.float32]],
    event: PrivacyEvent | None,
) -> Payload:
    fields: dict[str, Any] = {
        **echo(site, request),
        "code": "ok",
        "examples": site.settings.data.units if request.kind == "train" else 0,
    }
    if event is None:
        return Payload(fields, {})
    with at_the_desk(site, recipe, class_names, privacy.unit) as (learner, _, examples):
        assert examples.train_units is not None
        assert examples.validation_units is not None
        learner.load(received)
        if request.kind == "release":
            released = release_sums(learner, examples.train, examples.train_units, event, privacy)
            return Payload(fields, {event.purpose: released.astype(np.float32)})
        if request.kind == "score":
            fields["noisy_scores"] = noisy_scores(
                learner,
                examples.validation,
                examples.validation_units,
                event,
            )
            return Payload(fields, {})
        training = PrivateTraining(learner, examples.train, examples.train_units, privacy)
        training.run(
            event, site.settings.data.units, Stretch(request.round, recipe.federation.rounds)
        )
        return Payload(fields, learner.tensors())
