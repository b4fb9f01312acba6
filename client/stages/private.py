"""Handler of every stage under differential privacy.

A reply contains nothing computed from the pictures beyond the event that was charged: no counts, no
loss, no scores, no working time.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import PeerError, PolicyRefusal
from fgvc_core.privacy.accountant import PrivacyEvent, take
from fgvc_core.privacy.planning import plan_for
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.privacy.whitening import first_length, scatter_weight
from fgvc_core.protocol.stages import PERSONAL, PRETRAIN, SCORE, STAGES, TRAIN
from fgvc_core.training.compatibility import validate_private
from fgvc_core.training.loop import Stretch
from fgvc_core.training.private import PrivateTraining, noisy_scores, release_sums
from fgvc_core.wire.arrays import TensorSpec, spec_of
from fgvc_core.wire.codec import decode_model
from fieldmark.client.encoding import UpdateEncoder
from fieldmark.client.job import Job, echo
from fieldmark.client.privacy.gate import Departure, Gate
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.privacy.policy import check_engine
from fieldmark.client.workspace import learner_and_examples, learner_of

Tensors = dict[str, NDArray[np.float32]]


def answer_protected(gate: Gate, job: Job, privacy: PrivacySettings) -> Departure:
    """Answer a request under differential privacy.

    Recipe and request are validated before anything is charged.

    Raises:
        PolicyRefusal: if plan or budget do not allow it, or the training would break its guarantee.
        PeerError: if the recipe does not include what is asked.
    """
    event = event_of(job, privacy)
    received = {} if event is None else checked(job, privacy)

    def work() -> Payload:
        return _work(job, privacy, received, event)

    specs = specs_of_answer(privacy, event, received)
    encode = UpdateEncoder(job.site.home, job.request, job.recipe, job.received)
    return gate.protected_round(job.request, job.recipe, event, work, specs, encode)


def _plan(job: Job, privacy: PrivacySettings) -> tuple[PrivacyEvent, ...]:
    return plan_for(privacy, job.recipe.federation.rounds, job.recipe.sharers)


def rehearse_protected(gate: Gate, job: Job, privacy: PrivacySettings) -> Payload:
    """Work as for a request under differential privacy, for people at the site only.

    Nothing is charged, stored or sent, so nothing is released.

    Raises:
        PolicyRefusal: as :func:`answer_protected`.
        PeerError: as :func:`answer_protected`.
    """
    event = event_of(job, privacy)
    received = {} if event is None else checked(job, privacy)
    encode = UpdateEncoder(job.site.home, job.request, job.recipe, job.received)
    gate.check_leaving(specs_of_answer(privacy, event, received), encode)
    return _work(job, privacy, received, event)


def event_of(job: Job, privacy: PrivacySettings) -> PrivacyEvent | None:
    """Privacy event of the answer; None if the answer says nothing about the pictures."""
    request = job.request
    stage = STAGES.get((request.kind, request.phase))
    if stage is PERSONAL:
        raise PeerError("Fine-tuning at the sites is not part of this run.")
    if stage is PRETRAIN:
        raise PeerError(f"A '{request.phase}' round is not part of this run.")
    planned = {event.purpose: event for event in _plan(job, privacy)}
    wanted = None if stage is None else stage.privacy
    event = None if wanted is None else planned.get(wanted)
    if event is None:
        if stage is SCORE:
            return None
        asked = wanted or request.phase or "no phase"
        raise PolicyRefusal(
            f"A '{request.kind}' request ({asked}) is not part of this run's plan.",
            why="A site releases what was announced, and nothing beyond.",
            remedy="Ask for what privacy.method says.",
        )
    return take(event, privacy.steps if stage is TRAIN else 1)


def checked(job: Job, privacy: PrivacySettings) -> Tensors:
    """Received tensors, after request and model were validated; no picture is read.

    The recipe itself was checked when the gate admitted the request.
    """
    rounds = job.recipe.federation.rounds
    if not (job.stage.privacy == "scores" or 1 <= job.request.round <= rounds):
        raise PolicyRefusal(
            f"Round {job.request.round} is not one of the {rounds} of this run.",
            why="A site releases what was announced, and nothing beyond.",
            remedy="Start a new run.",
        )
    if job.request.proximal_mu:
        raise PeerError("A pull towards the received model is not part of private steps.")
    with learner_of(job) as (learner, specs):
        settled = validate_private(learner, privacy)
        # The engine that 'auto' stands for is known only now; still nothing is charged.
        check_engine(job.site.settings.policy, settled)
        return decode_model(job.received, specs, job.recipe.wire)


def specs_of_answer(
    privacy: PrivacySettings, event: PrivacyEvent | None, received: Tensors
) -> dict[str, TensorSpec]:
    """Specs of the answer's tensors, given the received ones."""
    # Of a masked sum, too, where a reply carries them under masks.
    if event is None or event.purpose == "scores":
        return {}
    if event.purpose == "step":
        return {name: spec_of(tensor) for name, tensor in received.items()}
    if set(received) - {"head.whitening"} != {"head.centre", "head.weight", "head.bias"}:
        raise PolicyRefusal(
            "privacy.method = 'class-sums' needs a frozen backbone and model.head = 'subspace'.",
            why="Sums of vectors of bounded length in a public subspace are what it releases.",
            remedy="Set model.train = 'head' and model.head = 'subspace', or privacy.method = "
            "'gradients'.",
        )
    classes, directions = received["head.weight"].shape
    if event.purpose == "centre":
        shape: tuple[int, ...] = (first_length(directions, scatter_weight(privacy)),)
    else:
        shape = (classes, directions + 1)
    return {event.purpose: TensorSpec("float32", shape)}


def _work(
    job: Job, privacy: PrivacySettings, received: Tensors, event: PrivacyEvent | None
) -> Payload:
    units = job.site.settings.data.units
    fields: dict[str, Any] = {
        **echo(job.site, job.request),
        "code": "ok",
        "examples": units if job.stage.weighs else 0,
    }
    if event is None:
        return Payload(fields, {})
    with learner_and_examples(job) as (learner, _, examples):
        assert examples.train_units is not None
        assert examples.validation_units is not None
        learner.load(received)
        if job.stage.carries == "release":
            released = release_sums(learner, examples.train, examples.train_units, event, privacy)
            return Payload(fields, {event.purpose: released.astype(np.float32)})
        if job.stage.carries == "nothing":
            held = examples.validation_units
            scores = noisy_scores(learner, examples.validation, held, event)
            return Payload({**fields, "noisy_scores": scores}, {})
        settled = validate_private(learner, privacy)
        training = PrivateTraining(learner, examples.train, examples.train_units, settled)
        training.run(event, units, Stretch(job.request.round, job.recipe.federation.rounds))
        return Payload(fields, learner.tensors())
