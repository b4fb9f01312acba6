"""A round of training whose updates are added up under masks, and the scores of a model likewise.

Without differential privacy the sum holds weighed changes of the model, and the figures that sites
would state otherwise. With it, it holds the clipped gradients of one step and the noise that all
sites share; the step is taken here. Either way the strategy gets one update: that of all sites.

Nothing can be screened by site. A sum that is impossible is refused whole.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord

from fgvc_core.errors import PeerError
from fgvc_core.flower.records import to_array_record
from fgvc_core.privacy.planning import learning_rate, plan_for
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.stages import SCORE, TRAIN
from fgvc_core.secure.part import Scale
from fgvc_core.secure.plain import (
    SCORES,
    Figures,
    exact_scale,
    moved,
    read_scores,
    read_update,
    size_of_update,
)
from fgvc_core.training.loop import Stretch, mean_rate
from fgvc_core.training.private import SCORES_BOUND
from fgvc_core.wire.arrays import TensorSpec, pack_all
from fieldmark.server.rounds.noise import noise_of
from fieldmark.server.rounds.secure_head import THE_SUM, noise_deviation
from fieldmark.server.rounds.secure_sum import Opened, SumLost, Wanted, secure_sum
from fieldmark.server.screening.checks import Screened
from fieldmark.server.screening.releases import SumsScreening
from fieldmark.server.strategies import Aggregation, SoundReply, Tensors

if TYPE_CHECKING:
    from fieldmark.server.rounds.context import RunContext, Updates


@dataclass(frozen=True)
class SummedRound:
    """A round whose sum was opened.

    Attributes:
        arrays: The new model.
        figures: Summed over its sites; all zero with differential privacy.
        accepted: Bodies of the answers of its sites.
    """

    arrays: ArrayRecord
    figures: Figures
    accepted: list[Screened]


def summed_round(
    context: "RunContext", updates: "Updates", number: int, cohort: list[str], arrays: ArrayRecord
) -> SummedRound:
    """Open the sum of a round's updates and let the strategy make a step of it.

    Args:
        context: The run's.
        updates: Of training.
        number: Of the round.
        cohort: Sites to ask.
        arrays: The model.

    Raises:
        SumLost: if the sum cannot be opened or is impossible; the model is as before.
    """
    strategy, model = updates.strategy, updates.unpacked(arrays)
    updates.history.begin(model, updates.rate(number))
    size, scale_of = _form(context, updates.specs)
    sent = updates.outgoing(arrays)
    wanted = Wanted(TRAIN, number, cohort, sent, size, scale_of, strategy.proximal_mu)
    opened = secure_sum(context, updates, wanted)
    try:
        if context.recipe.privacy is None:
            mean, figures = _mean(context, updates, model, opened)
        else:
            mean = _stepped(context, context.recipe.privacy, number, model, opened)
            figures = Figures()
    except PeerError as error:
        updates.history.void()
        raise _impossible(wanted, opened, error.what) from None
    round_ = Aggregation(number, model, 1, context.trust.found)
    tensors = strategy.aggregate([SoundReply(THE_SUM, 1.0, mean)], round_)
    assert tensors is not None
    updates.history.close(tensors)
    return SummedRound(to_array_record(pack_all(tensors)), figures, opened.accepted)


def part_of(context: "RunContext", specs: dict[str, TensorSpec]) -> TensorSpec:
    """What a site sends of a model with these tensors, in the largest sum."""
    size, scale_of = _form(context, specs)
    return TensorSpec(f"uint{scale_of(context.recipe.sharers).bits}", (size,))


def summed_scores(
    context: "RunContext", updates: "Updates", sites: list[str], arrays: ArrayRecord
) -> tuple[float, float, float]:
    """Validation pictures, right ones and summed loss of the last model, over all sites.

    With differential privacy the first two have the noise that the sites share, and the loss is 0.

    Raises:
        SumLost: if the sum cannot be opened or is impossible.
    """
    recipe, number = context.recipe, context.state.round
    size, scale_of = SCORES, _exactly(SCORES)
    if recipe.privacy is not None:
        size, scale_of = 2, _noisily(2, SCORES_BOUND, noise_of(recipe, SCORE))
    wanted = Wanted(SCORE, number, sites, updates.outgoing(arrays), size, scale_of)
    opened = secure_sum(context, updates, wanted)
    context.tally.close()
    if recipe.privacy is not None:
        examples, correct = opened.values.tolist()
        return examples, correct, 0.0
    try:
        return read_scores(opened.values, scale_of(1).step, len(opened.names))
    except PeerError as error:
        raise _impossible(wanted, opened, error.what) from None


def _form(
    context: "RunContext", specs: dict[str, TensorSpec]
) -> tuple[int, Callable[[int], Scale]]:
    """Number of values of a round's sum, and its scale by the number of sites that share noise."""
    recipe = context.recipe
    if recipe.privacy is None:
        size = size_of_update(specs)
        return size, _exactly(size)
    size = sum(spec.size for spec in specs.values())
    return size, _noisily(size, recipe.privacy.clipping_norm, noise_of(recipe, TRAIN))


def _exactly(size: int) -> Callable[[int], Scale]:
    return lambda adding: exact_scale(size)


def _noisily(size: int, bound: float, noise: float) -> Callable[[int], Scale]:
    return lambda adding: Scale.of_noise(bound, size, noise, adding)


def _mean(
    context: "RunContext", updates: "Updates", model: Tensors, opened: Opened
) -> tuple[Tensors, Figures]:
    """The mean of all sites' models, judged as that of one site of their mean size."""
    secure, members = context.recipe.secure, len(opened.names)
    assert secure is not None
    mean, figures = read_update(opened.values, model, secure.range, members)
    examples = max(figures.weight / members * secure.most_examples, 1.0)
    updates.history.judge(SoundReply(THE_SUM, examples, mean))
    return mean, figures


def _stepped(
    context: "RunContext", privacy: PrivacySettings, number: int, model: Tensors, opened: Opened
) -> Tensors:
    """The model after one step along the noisy gradient of all sites."""
    recipe, secure = context.recipe, context.recipe.secure
    assert secure is not None
    values_D, bound = opened.values, privacy.clipping_norm
    noise = noise_of(recipe, TRAIN)
    deviation = noise_deviation(context, bound, values_D.size, noise, opened)
    screening = SumsScreening({THE_SUM: opened.units}, bound, deviation, 0.0)
    refused = screening.refused({THE_SUM: values_D})
    if refused:
        raise PeerError(refused[THE_SUM])
    (step,) = (e for e in plan_for(privacy, recipe.federation.rounds) if e.purpose == "step")
    settings = recipe.train.model_copy(update={"epochs": 1})
    if privacy.lr_distance is not None:
        # With the noise that is in this sum: that of all its sites, the colluding ones included.
        step = replace(step, noise_multiplier=deviation / bound)
        rate = learning_rate(step, step.count, privacy, opened.units, values_D.size)
        settings = settings.model_copy(update={"lr": rate})
    rate = mean_rate(settings, Stretch(number, recipe.federation.rounds), 1)
    change_D = values_D * (-rate / (step.sampling_rate * max(opened.units, 1)))
    return moved(model, change_D)


def _impossible(wanted: Wanted, opened: Opened, why: str) -> SumLost:
    return SumLost(
        f"Round {wanted.number}: the sum of {wanted.stage.name} over {len(opened.names)} sites is "
        f"impossible. {why}",
        "At least one of its sites has sent something else than what it has learned; behind masks "
        "nobody can tell which.",
        "Ask fewer sites, or run without [secure], where each update is screened.",
    )
