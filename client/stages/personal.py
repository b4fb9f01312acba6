"""Personalization after the last round: fine-tune the global model at a site, for that site.

The personal model stays at the site, as a checkpoint for ``fieldmark predict``. Only the scores of
both models on the site's validation pictures leave, as far as its policy allows. (Wang et al. 2019,
"Federated Evaluation of On-device Personalization", https://arxiv.org/abs/1910.10252.) With
differential privacy this is refused: even the scores would be a release of a model fitted without
noise.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from fgvc_core import __version__
from fgvc_core.errors import PeerError
from fgvc_core.files import private_folder, write_durably
from fgvc_core.training.loop import Stretch
from fgvc_core.wire.codec import decode_model
from fieldmark.client.job import Job
from fieldmark.client.kept import Tensors
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.stages.train import RoundWork, scores_of
from fieldmark.client.workspace import learner_and_examples

FORMAT = "2"
"""Checkpoint format, the same as the coordinator's."""


def answer_personal(job: Job) -> Payload:
    """Score the received model, fine-tune it, score it again and save it.

    Raises:
        PeerError: if the recipe has no personalization, or the tensors do not match the model.
        DataError: if this site's pictures or labels are invalid.
    """
    recipe, site, settings = job.recipe, job.site, job.recipe.personal
    if not settings.epochs:
        raise PeerError("The recipe has no personal.epochs: fine-tuning is not part of this run.")
    batch_size = recipe.evaluate.batch_size
    with learner_and_examples(job) as (learner, specs, examples):
        work = RoundWork(job, learner)
        work.load(decode_model(job.received, work.expected(specs), recipe.wire))
        before, _ = learner.evaluate(examples.validation, batch_size)
        steps = settings.steps(recipe.train)
        purpose = f"personal {site.name}"
        outcome = learner.train_round(examples.train, Stretch(1, 1), purpose, settings=steps)
        after, _ = learner.evaluate(examples.validation, batch_size)
        _keep(job, learner.tensors())
    fields = {
        "examples": outcome.examples,
        "scores": scores_of(before),
        "personal": scores_of(after),
    }
    return Payload(fields, {})


def personal_checkpoint(home: Path, run: str) -> Path:
    """Path of a site's personal model of a run."""
    return home / "personal" / f"{run}.safetensors"


def _keep(job: Job, tensors: Tensors) -> None:
    """Save the personal model durably, before its scores may leave."""
    path = personal_checkpoint(job.site.home, job.request.run)
    private_folder(path.parent)
    contiguous = {name: np.require(array, requirements="C") for name, array in tensors.items()}
    write_durably(path, save(contiguous, checkpoint_metadata(job)))


def checkpoint_metadata(job: Job) -> dict[str, str]:
    """Metadata of a checkpoint of a site's own model."""
    return {
        "fieldmark": __version__,
        "format": FORMAT,
        "recipe": job.recipe.to_toml(),
        "recipe_digest": job.recipe.digest,
        "class_names": json.dumps(job.class_names),
        "site": job.site.name,
        "round": json.dumps(job.request.round),
    }
