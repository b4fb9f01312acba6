"""What a recipe's run will release, event by event, before its first release."""

import math
from collections.abc import Iterable
from functools import lru_cache

from fgvc_core.errors import ConfigurationError
from fgvc_core.privacy.accountant import epsilon_of_plan, noise_for
from fgvc_core.privacy.events import Plan, PrivacyEvent
from fgvc_core.privacy.settings import PrivacySettings

COUNT_NOISE_RATIO = 10.0
"""adaptive clipping: noise of the released count over the noise multiplier of the gradient's
own release; its share of each step's cost is then below one per cent."""

MOST_STEPS = 1_000_000
"""A site composes a million sampled steps in seconds; a stranger's recipe must not cost hours."""


@lru_cache(maxsize=64)
def plan_for(privacy: PrivacySettings, rounds: int) -> tuple[PrivacyEvent, ...]:
    """All events of a run at one site; equal settings, equal plan, at site and server.

    Args:
        privacy: ``[privacy]``.
        rounds: ``federation.rounds``.

    Raises:
        ConfigurationError: if no noise meets the target, or there are more releases than can
            be accounted.
    """
    steps = privacy.steps * rounds
    if privacy.method == "gradients" and steps > MOST_STEPS:
        raise ConfigurationError(
            f"privacy.steps = {privacy.steps:,} in each of {rounds:,} rounds are {steps:,} steps.",
            why=f"The accountant composes at most {MOST_STEPS:,}.",
            remedy="Take fewer steps, each at a higher privacy.sampling_rate.",
        )
    plan = _shape(privacy, rounds)
    return tuple(plan(noise_for(plan, privacy.epsilon, privacy.delta)))


def plan_epsilon(privacy: PrivacySettings, rounds: int) -> float:
    """What the whole plan costs: at most ``privacy.epsilon``, and within 0.1 % of it."""
    return epsilon_of_plan(plan_for(privacy, rounds), privacy.delta)


def gradient_noise(step: PrivacyEvent, privacy: PrivacySettings) -> tuple[float, float]:
    """The noise multipliers of the gradient and of the count in one step.

    With adaptive clipping a step releases the clipped sum and, of each unit, plus or
    minus a half for whether it was clipped. Both together cost what one release at
    ``step.noise_multiplier`` costs when z**-2 = z_gradient**-2 + (2 z_count)**-2 (Andrew
    et al. 2021, theorem 1, https://arxiv.org/abs/1905.03871).

    Returns:
        (z_gradient, z_count); z_count is infinite with fixed clipping.
    """
    z = step.noise_multiplier
    if privacy.clipping == "fixed":
        return z, math.inf
    # With z_count = ratio * z / 2 the rest of the identity gives z_gradient.
    z_count = COUNT_NOISE_RATIO * z / 2
    return (z**-2 - (2 * z_count) ** -2) ** -0.5, z_count


def _shape(privacy: PrivacySettings, rounds: int) -> Plan:
    """Base noise multiplier -> events, with the budget's split fixed."""

    def events(noise: float) -> Iterable[PrivacyEvent]:
        scores = privacy.score_share
        main = noise / math.sqrt(1 - scores)
        if privacy.method == "class-sums":
            yield PrivacyEvent("centre", main / math.sqrt(privacy.centre_share))
            yield PrivacyEvent("class-sums", main / math.sqrt(1 - privacy.centre_share))
        else:
            yield PrivacyEvent("step", main, privacy.sampling_rate, privacy.steps * rounds)
        if scores:
            # The last model alone is scored.
            yield PrivacyEvent("scores", noise * _score_scale(privacy, rounds))

    return events


def _score_scale(privacy: PrivacySettings, rounds: int) -> float:
    """Noise of the scores over the base noise, so that they cost their share."""
    if privacy.method == "class-sums":
        return privacy.score_share**-0.5
    # By the leading term of the Renyi divergence a step at rate q costs q**2 of a full one.
    steps = privacy.sampling_rate**2 * privacy.steps * rounds
    return (privacy.score_share * steps) ** -0.5
