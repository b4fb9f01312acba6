"""What a site answers when it is asked for class statistics, without differential privacy."""

import time
from collections.abc import Mapping
from typing import Any

from fgvc_core.errors import PeerError, PolicyRefusal
from fgvc_core.protocol.messages import Reply, Request, fixed_seconds
from fgvc_core.recipe import Recipe
from fgvc_core.training.start import site_statistics
from fgvc_core.wire.arrays import PackedTensor
from fgvc_core.wire.decode import decode_model
from fieldmark.client.site import Site
from fieldmark.client.workspace import at_the_desk, echo


def answer_statistics(
    site: Site,
    request: Request,
    recipe: Recipe,
    class_names: tuple[str, ...],
    packed: Mapping[str, PackedTensor],
) -> tuple[Reply, dict[str, Any]]:
    """Counts, sums and scatter of the site's training pictures under the received model.

    Returns:
        The reply (tensors' digests not filled in yet) and the statistics.

    Raises:
        PeerError: if the recipe asks for none, or the phase is another.
        PolicyRefusal: if the site keeps its counts.
    """
    if request.phase != "statistics":
        raise PeerError(f"There is no phase '{request.phase}' in a run without [privacy].")
    if not site.settings.policy.share_counts:
        raise PolicyRefusal(
            "policy.share_counts = false: class statistics hold how many pictures there are.",
            why="The site keeps these numbers.",
            remedy="Set train.start = 'none', or privacy.method = 'class-sums'.",
        )
    started = time.perf_counter()
    with at_the_desk(site, recipe, class_names) as (learner, specs, examples):
        learner.load(decode_model(packed, specs, recipe.wire))
        outgoing = site_statistics(learner, examples.train, recipe.evaluate.batch_size)
        count = len(examples.train)
    reply = Reply(
        **echo(site, request),
        code="ok",
        examples=count,
        seconds=fixed_seconds(time.perf_counter() - started),
    )
    return reply, outgoing
