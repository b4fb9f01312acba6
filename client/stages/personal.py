"""After the last round: the federation's model, trained on at this site, for this site.

What comes of it stays here, as a checkpoint that ``fieldmark predict`` reads; only how both models
score on the site's validation pictures leaves, as far as its policy lets scores leave. (Wang et
al. 2019, "Federated Evaluation of On-device Personalization", https://arxiv.org/abs/1910.10252.)
Under differential privacy even that would be a release of a model fitted without noise: refused.
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
"""Of a checkpoint, as the coordinator writes them."""


def answer_personal(job: Job) -> Payload:
    """Score the received model, train it on here, score and keep what it has become.

    Raises:
        PeerError: if the recipe asks for none of this, or the tensors are not the model's.
        DataError: if this site's pictures or labels are wrong.
    """
    recipe, site, settings = job.recipe, job.site, job.recipe.personal
    if not settings.epochs:
        raise PeerError("The recipe has no personal.epochs: fine-tuning is not part of this run.")
    batch_size = recipe.evaluate.batch_size
    with learner_and_examples(job) as (learner, specs, examples):
        work = RoundWork(job, learner)
        work.load(decode_model(job.received, work.expected(specs), recipe.wire))
        before, _ = learner.evaluate(examples.validation, batch_size)
        lr = recipe.train.lr / 10 if settings.lr is None else settings.lr
        steps = recipe.train.model_copy(
            update={"epochs": settings.epochs, "lr": lr, "schedule": "cosine"}
        )
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
    """Where a site keeps its own model of a run."""
    return home / "personal" / f"{run}.safetensors"


def _keep(job: Job, tensors: Tensors) -> None:
    """Keep the site's own model, on the disk before its scores may leave."""
    path = personal_checkpoint(job.site.home, job.request.run)
    private_folder(path.parent)
    metadata = {
        "fieldmark": __version__,
        "format": FORMAT,
        "recipe": job.recipe.to_toml(),
        "recipe_digest": job.recipe.digest,
        "class_names": json.dumps(job.class_names),
        "site": job.site.name,
        "round": json.dumps(job.request.round),
    }
    contiguous = {name: np.require(array, requirements="C") for name, array in tensors.items()}
    write_durably(path, save(contiguous, metadata))
