"""A site's own head: its exact class sums beside the noisy ones of the others.

The released head knows this site's pictures through noise alone, though the site has them at hand.
It puts its exact sums in their place and its own shares of the classes before them, and infers
again. What follows is as private as the pictures: it is written to the home (mode 0600), marked as
internal, and neither it nor its scores enter a reply. The reply is the same whatever the pictures
are, also if no head could be made: that is said in the site's own log.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from fgvc_core.errors import PeerError
from fgvc_core.files import private_folder, write_durably
from fgvc_core.inference.internal import INTERNAL
from fgvc_core.privacy.posterior import ExactSums, head_of_sums
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.own_sums import DEVIATION, SUMS, UNITS, specs_of_others
from fgvc_core.protocol.stages import CLASS_SUMS
from fgvc_core.secure.ready import Place
from fgvc_core.training.examples import Evaluation
from fgvc_core.training.private import clear_sums, projected_vectors
from fgvc_core.wire.codec import decode_model
from fieldmark.client.job import Job, echo
from fieldmark.client.own_heads import NOTE
from fieldmark.client.privacy.gate import Departure, Gate
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.stages.personal import checkpoint_metadata, personal_checkpoint
from fieldmark.client.workspace import learner_and_examples, learner_of

Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class OwnHead:
    """A site's own head, with scores on its validation pictures.

    Attributes:
        tensors: The model's traveling tensors, with the own head in place of the released one.
        released: Scores of the released head.
        own: Scores of the own head.
    """

    tensors: dict[str, NDArray[np.float32]]
    released: Evaluation
    own: Evaluation


def answer_own_sums(gate: Gate, job: Job, privacy: PrivacySettings) -> Departure:
    """Infer and keep this site's own head; the reply says only that the message arrived.

    Raises:
        PolicyRefusal: if the run is not approved here.
        PeerError: if the recipe has no heads of the sites' own, or the tensors are not those of
            its model and of others' sums.
    """
    if job.recipe.personal.method != "own-sums":
        raise PeerError("The recipe has no personal.method = 'own-sums'.")
    with learner_of(job) as (_, specs):
        others = specs_of_others(job.received, *specs["head.weight"].shape)
        received = decode_model(job.received, {**specs, **others}, job.recipe.wire)
    model = {name: received[name] for name in specs}

    def work() -> Payload:
        try:
            if job.recipe.secure is not None and gate.ledger.view_at(_place(job)) is None:
                # What would be taken off the total is not in it.
                raise PeerError("This site has no part in the sum that it was sent.")
            _keep(job, _inferred(job, privacy, model, received))
        except Exception:
            # Whether it worked depends on the pictures: only the site's people may know.
            log = logging.getLogger(f"fieldmark.site.{job.site.home}")
            log.exception("no head of this site's own could be made")
        return Payload({**echo(job.site, job.request), "code": "ok", "examples": 0}, {})

    return gate.protected_round(job.request, job.recipe, None, work)


def _place(job: Job) -> Place:
    """Where in the run the class sums were added up."""
    return Place(job.request.run, job.request.round, CLASS_SUMS.phase, CLASS_SUMS.kind)


def _inferred(job: Job, privacy: PrivacySettings, model: Tensors, received: Tensors) -> OwnHead:
    """The head, and both heads' scores on the site's validation pictures."""
    sums_SKQ = received[SUMS].astype(np.float64)
    with learner_and_examples(job) as (learner, _, examples):
        assert examples.train_units is not None
        learner.load(dict(model))
        if job.recipe.secure is not None:
            # The total holds this site's part; the noise stays that of the whole.
            units_N = examples.train_units
            sums_SKQ -= clear_sums(learner, examples.train, units_N, "class-sums", privacy)
        vectors_NP = projected_vectors(learner, examples.train, centred=True)
        labels_N = examples.train.labels_N.numpy()
        counts_K = np.bincount(labels_N, minlength=learner.num_classes).astype(np.float64)
        sums_KP = np.zeros((learner.num_classes, vectors_NP.shape[1]))
        np.add.at(sums_KP, labels_N, vectors_NP)
        own = head_of_sums(
            sums_SKQ,
            float(received[DEVIATION][0]),
            received[UNITS].astype(np.float64),
            privacy,
            ExactSums(sums_KP, counts_K),
        )
        batch_size = job.recipe.evaluate.batch_size
        before, _ = learner.evaluate(examples.validation, batch_size)
        tensors = {**model, **own}
        learner.load(tensors)
        after, _ = learner.evaluate(examples.validation, batch_size)
    return OwnHead(tensors, before, after)


def _keep(job: Job, head: OwnHead) -> None:
    """Write a head, and its scores beside it, to the site's home, mode 0600."""
    path = personal_checkpoint(job.site.home, job.request.run)
    private_folder(path.parent)
    metadata = {**checkpoint_metadata(job), INTERNAL: job.site.name}
    contiguous = {name: np.require(array, requirements="C") for name, array in head.tensors.items()}
    write_durably(path, save(contiguous, metadata))
    note = {
        "run": job.request.run,
        "recipe": job.recipe.name,
        "examples": head.own.examples,
        "released": head.released.correct,
        "own": head.own.correct,
    }
    write_durably(path.with_suffix(NOTE), json.dumps(note).encode())
