"""Audit of private gradient steps: a whole run at one site with canaries planted in its data.

The run uses the installed mechanism: the plan's events, Poisson sampling, the engine's clipped
sums, the noisy release and the optimizer. The attacker sees every release and the model before it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.audit.attacker import step_log_likelihood
from fgvc_core.audit.membership import confidences, mean_by_unit
from fgvc_core.audit.planted import (
    GradientCanaries,
    Observed,
    PlantedGradients,
    audit_generator,
    fair_coins,
)
from fgvc_core.audit.planted_features import PlantedFeatures
from fgvc_core.audit.settings import AuditSettings
from fgvc_core.audit.watched import Chosen, WatchedTraining
from fgvc_core.errors import RunFailed
from fgvc_core.losses.base import SmoothedCrossEntropy
from fgvc_core.models.heads import CosineHead, LinearHead
from fgvc_core.privacy.accountant import PrivacyEvent, take
from fgvc_core.privacy.gradients import GradientEngine, LossOf, UnitBatch, size_of
from fgvc_core.privacy.noise import make_grid
from fgvc_core.privacy.planning import gradient_noise, plan_for
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.training.examples import Examples, FeatureExamples
from fgvc_core.training.learner import Learner
from fgvc_core.training.loop import Stretch
from fgvc_core.training.private import Units

Tell = Callable[[int, int], None]
"""Called with (releases seen, releases in all)."""

_MEDIAN_OF_NORMAL = 0.6745


def attack_gradients(
    learner: Learner,
    examples: Examples,
    units_N: Units,
    privacy: PrivacySettings,
    settings: AuditSettings,
    rounds: int,
    public_units: int,
    tell: Tell = lambda done, total: None,
) -> Observed:
    """Train under the plan on canaries and a random half of the site's own units.

    Args:
        learner: Trained in place.
        examples: All of the site's pictures, at least one.
        units_N: int64 (N,), the unit of each picture.
        privacy: ``[privacy]``, method ``gradients``.
        settings: ``[audit]``.
        rounds: ``federation.rounds``.
        public_units: The site's declared number of units.
        tell: Called after each release.

    Raises:
        RunFailed: if not every release was seen.
    """
    generator = audit_generator(settings)
    (step,) = [event for event in plan_for(privacy, rounds) if event.purpose == "step"]
    unit_included_U = fair_coins(int(units_N.max()) + 1, generator)
    before_N = confidences(learner, examples)
    data = _plant(learner, examples, units_N, unit_included_U, privacy, settings, generator)
    attacker = _Attacker(data, step, privacy, public_units, tell)
    training = WatchedTraining(
        learner,
        data.examples,
        data.units_N,
        privacy.model_copy(update={"engine": data.engine}),
        attacker.see,
        data.plant,
    )
    if isinstance(examples, FeatureExamples):
        attacker.engine = training.engine
    for round_ in range(1, rounds + 1):
        training.run(take(step, privacy.steps), public_units, Stretch(round_, rounds))
    if attacker.seen != step.count:
        raise RunFailed(
            f"The audit saw {attacker.seen} of {step.count} releases.",
            why="A release that is not seen is not audited.",
        )
    return Observed(
        scores_M=attacker.scores_M,
        included_M=data.included_M,
        unit_scores_U=mean_by_unit(confidences(learner, examples) - before_N, units_N),
        unit_included_U=unit_included_U,
        engine=data.engine,
        releases=attacker.seen,
        wanted=settings.canaries,
    )


@dataclass(frozen=True)
class _Planted:
    """The data of an attacked run.

    Attributes:
        examples: The chosen pictures, followed by planted ones if canaries are pictures.
        units_N: int64, units of the pictures and then of the canaries.
        real_N: int64, units of the chosen pictures, which come first.
        canaries: As the attacker sees them.
        included_M: The canaries' coins.
        plant: Losses of the included canaries if they are not pictures, else None.
        engine: Name of the engine that computes the sums.
    """

    examples: Examples
    units_N: Units
    real_N: Units
    canaries: GradientCanaries
    included_M: NDArray[np.bool_]
    plant: LossOf | None
    engine: str


def _plant(
    learner: Learner,
    examples: Examples,
    units_N: Units,
    unit_included_U: NDArray[np.bool_],
    privacy: PrivacySettings,
    settings: AuditSettings,
    generator: np.random.Generator,
) -> _Planted:
    rows = np.flatnonzero(unit_included_U[units_N]).astype(np.int64)
    _, real_N = np.unique(units_N[rows], return_inverse=True)
    real_N = real_N.astype(np.int64)
    length = settings.norm * privacy.clipping_norm
    head = learner.model.head
    planted: PlantedFeatures | PlantedGradients
    if isinstance(examples, FeatureExamples) and _has_closed_form(learner, privacy):
        count = min(settings.canaries, cast(torch.Tensor, head.weight).numel())
        planted = PlantedFeatures(learner, count, length, generator)
        included_M = fair_coins(count, generator)
        which = np.repeat(np.flatnonzero(included_M), planted.copies)
        features = [examples.features_ND[rows], torch.from_numpy(planted.features_MD[which])]
        labels = [examples.labels_N.numpy()[rows], planted.labels_M[which]]
        chosen: Examples = FeatureExamples(
            torch.cat(features), np.concatenate(labels), examples.known
        )
        plant, copies, engine = None, planted.copies, "closed-form"
    else:
        parameters = [p for p in learner.model.parameters() if p.requires_grad]
        count = min(settings.canaries, size_of(parameters))
        planted = PlantedGradients(parameters, count, settings.kind, length, generator)
        included_M = fair_coins(count, generator)
        chosen = Chosen(examples, rows)
        plant, copies, engine = planted.chosen(included_M), 1, "loop"
    first = int(unit_included_U.sum())
    numbers = np.arange(first, first + int(included_M.sum()), dtype=np.int64)
    all_N = np.concatenate([real_N, np.repeat(numbers, copies)])
    return _Planted(chosen, all_N, real_N, planted, included_M, plant, engine)


def _has_closed_form(learner: Learner, privacy: PrivacySettings) -> bool:
    """Whether the site would use the engine that works on features and labels alone."""
    return (
        privacy.engine in ("auto", "closed-form")
        and type(learner.model.head) in (LinearHead, CosineHead)
        and type(learner.loss) is SmoothedCrossEntropy
        and learner.model.dropout.p == 0
    )


class _Attacker:
    """The attacker, which updates its scores during the run.

    Attributes:
        scores_M: Log-likelihood ratio of each canary so far.
        seen: Number of releases so far.
        engine: Set if a pass over the rest of the data is cheap; computes that pass.
    """

    def __init__(
        self,
        data: _Planted,
        step: PrivacyEvent,
        privacy: PrivacySettings,
        public_units: int,
        tell: Tell,
    ) -> None:
        self._data = data
        self._step = step
        self._privacy = privacy
        self._divisor = step.sampling_rate * max(public_units, 1)
        self._noise, _ = gradient_noise(step, privacy)
        self._tell = tell
        self.scores_M = np.zeros(len(data.included_M))
        self.seen = 0
        self.engine: GradientEngine | None = None

    def see(self, noisy_D: NDArray[np.float64]) -> None:
        """Score one release; the model is still the one before it."""
        values_D = self._without_the_rest(noisy_D * self._divisor)
        bound = self._bound(values_D)
        deviation = make_grid(bound, len(values_D), self._noise).deviation
        products_M, lengths_M = self._data.canaries.along(values_D)
        self.scores_M += step_log_likelihood(
            products_M, np.minimum(lengths_M, bound), deviation, self._step.sampling_rate
        )
        self.seen += 1
        self._tell(self.seen, self._step.count)

    def _without_the_rest(self, values_D: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum without its component along the mean contribution of the known pictures.

        In a head, that component is comparable to the canaries' contributions. In a whole network
        it is spread so thin that it need not be computed.
        """
        real_N = self._data.real_N
        if self.engine is None or not len(real_N):
            return values_D
        everyone = UnitBatch(np.arange(len(real_N)), real_N, int(real_N.max()) + 1)
        rest = self.engine.clipped_sum(everyone, self._privacy.clipping_norm)
        rest_D = rest.total_D.cpu().numpy()
        square = float(rest_D @ rest_D)
        return values_D - (values_D @ rest_D / square) * rest_D if square > 0 else values_D

    def _bound(self, values_D: NDArray[np.float64]) -> float:
        """The clipping norm; an adaptive one is estimated from the width of the noise."""
        if self._privacy.clipping == "fixed":
            return self._privacy.clipping_norm
        width = float(np.median(np.abs(values_D))) / _MEDIAN_OF_NORMAL
        return max(width / self._noise, 1e-9 * self._privacy.clipping_norm)
