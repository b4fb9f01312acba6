"""What a site answers when its pictures without labels are learnt from, before round 1.

Its own part of the pool and its training pictures, whose labels are not looked at. Validation
pictures stay out, so that their scores say nothing of pictures that were learnt.
"""

import time
from collections.abc import Mapping
from typing import Any

from fgvc_core.errors import DataError, PeerError
from fgvc_core.protocol.messages import Reply, Request, fixed_seconds
from fgvc_core.protocol.ranges import stated_loss
from fgvc_core.recipe import Recipe
from fgvc_core.training.pretraining import Pretraining
from fgvc_core.training.schedule import Stretch
from fgvc_core.wire.arrays import PackedTensor, spec_of
from fgvc_core.wire.decode import decode_model
from fieldmark.client.site import Site
from fieldmark.client.workspace import echo, learner_at_the_desk, pictures_without_labels


def answer_pretraining(
    site: Site,
    request: Request,
    recipe: Recipe,
    class_names: tuple[str, ...],
    packed: Mapping[str, PackedTensor],
) -> tuple[Reply, dict[str, Any]]:
    """Train the received backbone and projector on pictures alone.

    Returns:
        The reply (tensors' digests not filled in yet) and the tensors that go along.

    Raises:
        PeerError: if the recipe has no pre-training, or the tensors are not its own.
        DataError: if this site's pictures are wrong, or fewer than two.
    """
    settings = recipe.pretrain
    if settings.method == "none" or not 1 <= request.round <= settings.rounds:
        raise PeerError(f"Round {request.round} of pre-training is not part of this run.")
    started = time.perf_counter()
    with learner_at_the_desk(site, recipe, class_names) as (learner, _):
        work = Pretraining(learner, settings)
        specs = {name: spec_of(array) for name, array in work.tensors().items()}
        work.load(decode_model(packed, specs, recipe.wire))
        own = pictures_without_labels(site, recipe, learner, class_names)
        bank = learner.pictures(own, site.cache)
        if len(bank) < 2:
            raise DataError(
                f"This site has {len(bank)} pictures to learn from without labels.",
                why="A picture has to differ from another.",
                remedy="Put pictures into its pool (split = pool), or leave it out of the run.",
            )
        outcome = work.train_round(bank, Stretch(request.round, settings.rounds), site.name)
        outgoing = work.tensors()
    reply = Reply(
        **echo(site, request),
        code="ok",
        examples=outcome.examples,
        loss=stated_loss(outcome.loss),
        seconds=fixed_seconds(time.perf_counter() - started),
    )
    return reply, outgoing
