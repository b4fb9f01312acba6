"""A private round that computes the head from masked sums: one center, one sum per class.

As :mod:`.closed_form`, from two sums over all sites instead of two releases of each. The noise of a
sum is that of all its sites together, so the posterior sees one large site. Nothing can be compared
or weighed by site; a sum that is impossible is refused whole.
"""

from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fgvc_core.errors import RunFailed
from fgvc_core.flower.records import to_array_record
from fgvc_core.privacy.class_sums import sums_bound
from fgvc_core.privacy.noise import make_grid
from fgvc_core.privacy.posterior import head_of_sums
from fgvc_core.privacy.whitening import first_bound, first_length, first_tensors, scatter_weight
from fgvc_core.protocol.stages import CENTRE, CLASS_SUMS, Stage
from fgvc_core.secure.part import Scale
from fgvc_core.wire.arrays import pack_all
from fieldmark.server.rounds.noise import noise_of
from fieldmark.server.rounds.own_sums import Released, hand_out
from fieldmark.server.rounds.secure_sum import Opened, Wanted, secure_sum
from fieldmark.server.rounds.stage import HeadRound, StageResult
from fieldmark.server.screening.releases import SumsScreening, too_many_units

if TYPE_CHECKING:
    from fieldmark.server.rounds.context import RunContext

THE_SUM = "the sum"


def secure_head(asked: HeadRound) -> tuple[StageResult[ArrayRecord], int]:
    """Open the two sums and compute the head.

    Returns:
        The new model, with the accepted bodies of the last stage; and how many sites' values went
        into it.

    Raises:
        RunFailed: if a sum cannot be opened, or is impossible.
    """
    context, state = asked.context, asked.context.state
    _leave_out(context, asked.sites, asked.number)
    model = asked.updates.unpacked(asked.arrays)
    directions, classes = len(model["head.centre"]), len(context.home.class_names)
    privacy = context.recipe.privacy
    assert privacy is not None
    weight = scatter_weight(privacy)
    if not state.centre:
        length = first_length(directions, weight)
        opened = _opened(asked, CENTRE, asked.arrays, (length,))
        noise = noise_of(context.recipe, CENTRE)
        deviation = noise_deviation(context, first_bound(weight), length, noise, opened)
        # JSON round-trips float64 bit for bit.
        state.centre = (np.append(opened.values, deviation) / opened.units).tolist()
        asked.keep()
    first_Q = np.array(state.centre)
    centred = {**model, **first_tensors(first_Q[:-1], directions, weight, float(first_Q[-1]))}
    sent = to_array_record(pack_all(centred))
    shape = (classes, directions + 1)
    opened = _opened(asked, CLASS_SUMS, sent, shape)
    total = _released(context, opened.values.reshape(shape), opened)
    head = head_of_sums(total.sums_SKQ, total.deviation, total.units_S, privacy)
    finished = {**centred, **head}
    # The others have no part in the total that they could take off.
    hand_out(asked, list(opened.names), finished, total)
    value = to_array_record(pack_all(finished))
    return StageResult(value, opened.accepted), len(opened.names)


def _leave_out(context: "RunContext", sites: list[str], number: int) -> None:
    """Set aside sites that declare far too many units, by which sums are divided."""
    units = {site: context.exchange.units[site] for site in context.trust.in_use(sites)}
    ratio = context.recipe.federation.max_weight_ratio
    for site, reason in too_many_units(units, ratio).items():
        context.tally.left_out(site, None)
        context.trust.leave_out(site, reason, number)


def _opened(
    head_round: HeadRound, stage: Stage, sent: ArrayRecord, shape: tuple[int, ...]
) -> Opened:
    """One sum, checked by its norm and count against the public units of all its sites."""
    context, number = head_round.context, head_round.number
    privacy = context.recipe.privacy
    assert privacy is not None
    size = int(np.prod(shape))
    bound = sums_bound(privacy.count_coordinate)
    if stage is CENTRE:
        bound = first_bound(scatter_weight(privacy))
    noise = noise_of(context.recipe, stage)

    def scale_of(adding: int) -> Scale:
        return Scale.of_noise(bound, size, noise, adding)

    sites = context.trust.in_use(head_round.sites)
    wanted = Wanted(stage, number, sites, sent, size, scale_of)
    opened = secure_sum(context, head_round.updates, wanted)
    count = None if stage is CENTRE else privacy.count_coordinate
    deviation = noise_deviation(context, bound, size, noise, opened)
    screening = SumsScreening({THE_SUM: opened.units}, bound, deviation, 0.0, count)
    refused = screening.refused({THE_SUM: opened.values.reshape(shape)})
    if refused:
        raise RunFailed(
            f"Round {number}: the sum of {stage.name} over {len(opened.names)} sites is "
            f"impossible. {refused[THE_SUM]}",
            why="At least one of its sites has sent something else than its pictures' sums; behind "
            "masks nobody can tell which.",
            remedy="Ask fewer sites, or run without [secure], where each site's sums are screened.",
        )
    return opened


def noise_deviation(
    context: "RunContext", bound: float, size: int, noise: float, opened: Opened
) -> float:
    """Standard deviation of the noise of an opened sum: that of each site, over all of them."""
    secure = context.recipe.secure
    assert secure is not None
    members = len(opened.names)
    one = make_grid(bound, size, noise, secure.rules.adding(members)).deviation
    return float(one * np.sqrt(members))


def _released(context: "RunContext", sums_KQ: NDArray[np.float64], opened: Opened) -> Released:
    """The sum, as the posterior sees it: one large site with the noise of all of them."""
    privacy = context.recipe.privacy
    assert privacy is not None
    noise = noise_of(context.recipe, CLASS_SUMS)
    bound = sums_bound(privacy.count_coordinate)
    deviation = noise_deviation(context, bound, sums_KQ.size, noise, opened)
    units_S = np.array([float(opened.units)])
    return Released(opened.names, sums_KQ[None], units_S, deviation)
