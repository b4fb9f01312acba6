"""After the last round: the federation's model, trained on at this site, for this site.

What comes of it stays here, as a checkpoint that ``fieldmark predict`` reads; only how both models
score on the site's validation pictures leaves, as far as its policy lets scores leave. (Wang et
al. 2019, "Federated Evaluation of On-device Personalization", https://arxiv.org/abs/1910.10252.)
Under differential privacy even that would be a release of a model fitted without noise: refused.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from fgvc_core import __version__
from fgvc_core.errors import PeerError
from fgvc_core.files import private_folder, write_durably
from fgvc_core.protocol.messages import Reply, Request, fixed_seconds
from fgvc_core.recipe import Recipe
from fgvc_core.training.schedule import Stretch
from fgvc_core.wire.arrays import PackedTensor
from fgvc_core.wire.decode import decode_model
from fieldmark.client.kept import Tensors
from fieldmark.client.site import Site
from fieldmark.client.workspace import at_the_desk, echo, round_work, scores_of

FORMAT = "2"
"""Of a checkpoint, as the coordinator writes them."""


def answer_personal(
    site: Site,
    request: Request,
    recipe: Recipe,
    class_names: tuple[str, ...],
    packed: Mapping[str, PackedTensor],
) -> tuple[Reply, dict[str, Any]]:
    """Score the received model, train it on here, score and keep what it has become.

    Returns:
        The reply (tensors' digests not filled in yet), and no tensors.

    Raises:
        PeerError: if the recipe asks for none of this, or the tensors are not the model's.
        DataError: if this site's pictures or labels are wrong.
    """
    settings = recipe.personal
    if not settings.epochs:
        raise PeerError("The recipe has no personal.epochs: fine-tuning is not part of this run.")
    started = time.perf_counter()
    batch_size = recipe.evaluate.batch_size
    with at_the_desk(site, recipe, class_names) as (learner, specs, examples):
        work = round_work(site, request, recipe, learner)
        work.load(decode_model(packed, work.expected(specs), recipe.wire))
        before, _ = learner.evaluate(examples.validation, batch_size)
        lr = recipe.train.lr / 10 if settings.lr is None else settings.lr
        steps = recipe.train.model_copy(
            update={"epochs": settings.epochs, "lr": lr, "schedule": "cosine"}
        )
        purpose = f"personal {site.name}"
        outcome = learner.train_round(examples.train, Stretch(1, 1), purpose, settings=steps)
        after, _ = learner.evaluate(examples.validation, batch_size)
        keep(site, request, recipe, class_names, learner.tensors())
    reply = Reply(
        **echo(site, request),
        code="ok",
        examples=outcome.examples,
        scores=scores_of(before),
        personal=scores_of(after),
        seconds=fixed_seconds(time.perf_counter() - started),
    )
    return reply, {}


def personal_checkpoint(home: Path, run: str) -> Path:
    """Where a site keeps its own model of a run."""
    return home / "personal" / f"{run}.safetensors"


def keep(
    site: Site, request: Request, recipe: Recipe, class_names: tuple[str, ...], tensors: Tensors
) -> None:
    """Keep the site's own model, on the disk before its scores may leave."""
    path = personal_checkpoint(site.home, request.run)
    private_folder(path.parent)
    metadata = {
        "fieldmark": __version__,
        "format": FORMAT,
        "recipe": recipe.to_toml(),
        "recipe_digest": recipe.digest,
        "class_names": json.dumps(class_names),
        "site": site.name,
        "round": json.dumps(request.round),
    }
    contiguous = {name: np.require(array, requirements="C") for name, array in tensors.items()}
    write_durably(path, save(contiguous, metadata))
