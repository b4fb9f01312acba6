"""The privacy plan of a run: all its events, computed from the recipe before the first release."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from fgvc_core.errors import ConfigurationError
from fgvc_core.privacy.accountant import PlanShape, PrivacyEvent, epsilon_of_plan, noise_for
from fgvc_core.privacy.settings import PrivacySettings

COUNT_NOISE_RATIO = 10.0
"""Adaptive clipping: noise of the released count relative to the noise multiplier of the gradient;
the count's share of each step's cost is then below one percent."""

MOST_STEPS = 1_000_000
"""Most sampled steps; composed in seconds, so that a stranger's recipe cannot cost hours."""


@lru_cache(maxsize=64)
def plan_for(privacy: PrivacySettings, rounds: int, sharers: int = 1) -> tuple[PrivacyEvent, ...]:
    """All events of a run at one site; the same at site and server for equal settings.

    Args:
        privacy: ``[privacy]``.
        rounds: ``federation.rounds``.
        sharers: Most sites that share the noise (``secure.most`` less ``secure.colluding``); 1:
            each site adds all of it.

    Raises:
        ConfigurationError: if no noise meets the target, or there are too many releases to account
            for.
    """
    steps = privacy.steps * rounds
    if privacy.method == "gradients" and steps > MOST_STEPS:
        raise ConfigurationError(
            f"privacy.steps = {privacy.steps:,} in each of {rounds:,} rounds are {steps:,} steps.",
            why=f"The accountant composes at most {MOST_STEPS:,}.",
            remedy="Take fewer steps, each at a higher privacy.sampling_rate.",
        )
    plan = _shape(privacy, rounds)
    noise = noise_for(plan, privacy.epsilon, privacy.delta)
    return tuple(replace(event, sharers=sharers) for event in plan(noise))


def plan_epsilon(privacy: PrivacySettings, rounds: int) -> float:
    """Cost of the whole plan: at most ``privacy.epsilon``, and within 0.1 % of it."""
    return epsilon_of_plan(plan_for(privacy, rounds), privacy.delta)


def gradient_noise(step: PrivacyEvent, privacy: PrivacySettings) -> tuple[float, float]:
    """The noise multipliers of the gradient and of the count in one step.

    With adaptive clipping, a step releases the clipped sum and, summed over units, plus or minus
    one half for whether each was clipped. Together they cost as much as one release at
    ``step.noise_multiplier`` if z**-2 = z_gradient**-2 + (2 z_count)**-2 (Andrew et al. 2021,
    theorem 1, https://arxiv.org/abs/1905.03871).

    Returns:
        (z_gradient, z_count); z_count is infinite with fixed clipping.
    """
    z = step.noise_multiplier
    if privacy.clipping == "fixed":
        return z, math.inf
    # With z_count = ratio * z / 2, the identity determines z_gradient.
    z_count = COUNT_NOISE_RATIO * z / 2
    return (z**-2 - (2 * z_count) ** -2) ** -0.5, z_count


def learning_rate(
    step: PrivacyEvent,
    steps: int,
    privacy: PrivacySettings,
    public_units: int,
    dimensions: int,
) -> float:
    """The learning rate of gradient descent that suits the noise, and so the target epsilon.

    A convex loss is within distance**2 / (2 * rate * steps) + rate * length**2 / 2 of its minimum,
    where ``length`` is the length of a noisy gradient (Bassily, Smith and Thakurta 2014, section 2,
    https://arxiv.org/abs/1405.7085); this rate minimizes the bound. On synthetic features (20 and
    50 classes; 600, 1,500 and 3,000 units; epsilon 2 and 8; 20 to 300 steps), a cosine head with
    distance 4.5 * sqrt(classes) came within 0.03 of the top-1 of the best of eleven rates. A linear
    head's distance varied fourfold, so none is suggested.

    Args:
        step: A step event of the plan.
        steps: Number of steps in the whole run.
        privacy: ``[privacy]`` with ``lr_distance``.
        public_units: The declared number of units.
        dimensions: Number of trainable values.
    """
    assert privacy.lr_distance is not None
    bound, divisor = privacy.clipping_norm, step.sampling_rate * max(public_units, 1)
    noise = gradient_noise(step, privacy)[0] * bound / divisor * math.sqrt(dimensions)
    return privacy.lr_distance / (math.hypot(bound, noise) * math.sqrt(steps))


def _shape(privacy: PrivacySettings, rounds: int) -> PlanShape:
    """Base noise multiplier -> events, with a fixed split of the budget."""

    def events(noise: float) -> Iterable[PrivacyEvent]:
        scores = privacy.score_share
        main = noise / math.sqrt(1 - scores)
        if privacy.method == "class-sums":
            first = privacy.centre_share + privacy.scatter_share
            yield PrivacyEvent("centre", main / math.sqrt(first))
            yield PrivacyEvent("class-sums", main / math.sqrt(1 - first))
        else:
            yield PrivacyEvent("step", main, privacy.sampling_rate, privacy.steps * rounds)
        if scores:
            # Only the last model is scored.
            yield PrivacyEvent("scores", noise * _score_scale(privacy, rounds))

    return events


def _score_scale(privacy: PrivacySettings, rounds: int) -> float:
    """Noise of the scores relative to the base noise, so that they cost their share."""
    if privacy.method == "class-sums":
        return privacy.score_share**-0.5
    # By the leading term of the Renyi divergence, a step at rate q costs q**2 of a full release.
    steps = privacy.sampling_rate**2 * privacy.steps * rounds
    return (privacy.score_share * steps) ** -0.5
