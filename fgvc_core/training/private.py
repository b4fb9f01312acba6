"""Training and scoring under differential privacy: applies the mechanisms to a learner."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.errors import PolicyRefusal
from fgvc_core.losses.base import SmoothedCrossEntropy
from fgvc_core.models.heads import CosineHead, LinearHead, SubspaceHead
from fgvc_core.models.trainable import trained_parameters
from fgvc_core.privacy.accountant import PrivacyEvent, Purpose
from fgvc_core.privacy.batched import BatchedEngine
from fgvc_core.privacy.class_sums import (
    centre_sum,
    counted_sums,
    sums_bound,
    unit_vectors,
)
from fgvc_core.privacy.gradients import (
    ClosedFormEngine,
    GradientEngine,
    HeadView,
    LoopEngine,
    UnitBatch,
    size_of,
)
from fgvc_core.privacy.noise import make_grid, release
from fgvc_core.privacy.planning import gradient_noise, learning_rate
from fgvc_core.privacy.rows import each_row
from fgvc_core.privacy.sampling import clip_scales, draw_units, fresh_seed
from fgvc_core.privacy.settings import Engine, PrivacySettings
from fgvc_core.privacy.whitening import first_bound, scatter_weight
from fgvc_core.training.examples import Examples, FeatureExamples, Lesson
from fgvc_core.training.learner import Learner
from fgvc_core.training.loop import (
    Averaged,
    Stretch,
    make_optimizer,
    make_scheduler,
    parameter_groups,
)

Units = NDArray[np.int64]

CLIPPING_RATE = 0.2
"""Adaptive clipping: step size of the bound toward its quantile (Andrew et al. 2021, section 3)."""


@torch.inference_mode()
def projected_vectors(learner: Learner, examples: Examples, centred: bool) -> NDArray[np.float64]:
    """float64 (N, P): unit vectors of the examples in the head's subspace."""
    head = learner.model.head
    if not isinstance(head, SubspaceHead) or not isinstance(examples, FeatureExamples):
        raise PolicyRefusal(
            "privacy.method = 'class-sums' needs a frozen backbone and model.head = 'subspace'.",
            why="Sums of vectors of bounded length in a public subspace are what it releases.",
            remedy="Set model.train = 'head' and model.head = 'subspace', or privacy.method = "
            "'gradients'.",
        )
    features_ND = examples.features_ND.to(head.weight.device)

    def project(row_1D: torch.Tensor) -> torch.Tensor:
        vector_1P = head.project(row_1D)
        return head.centred(vector_1P) if centred else vector_1P

    # Row by row, so that no bit of a row depends on the others.
    return unit_vectors(each_row(project, features_ND, len(head.directions_PD)))


def release_sums(
    learner: Learner,
    examples: Examples,
    units_N: Units,
    event: PrivacyEvent,
    privacy: PrivacySettings,
) -> NDArray[np.float64]:
    """Compute the noisy center (P,) or class sums (K, P + 1) that an event pays for.

    Args:
        learner: Its head has the center for the class sums.
        examples: The site's training split.
        units_N: int64 (N,), privacy unit of each example.
        event: ``centre`` or ``class-sums``.
        privacy: ``[privacy]``.
    """
    sums = clear_sums(learner, examples, units_N, event.purpose, privacy)
    bound = sums_bound_of(event.purpose, privacy)
    return release(sums, make_grid(bound, sums.size, event.noise_multiplier))


def sums_bound_of(purpose: Purpose, privacy: PrivacySettings) -> float:
    """Largest norm of one unit's part in the sums of a purpose: ``centre`` or ``class-sums``."""
    if purpose == "centre":
        return first_bound(scatter_weight(privacy))
    return sums_bound(privacy.count_coordinate)


def clear_sums(
    learner: Learner,
    examples: Examples,
    units_N: Units,
    purpose: Purpose,
    privacy: PrivacySettings,
) -> NDArray[np.float64]:
    """As :func:`release_sums` without noise: only for what adds it, see ``secure``."""
    vectors_NP = projected_vectors(learner, examples, purpose == "class-sums")
    if purpose == "centre":
        return centre_sum(vectors_NP, units_N, scatter_weight(privacy))
    return counted_sums(
        vectors_NP,
        examples.labels_N.numpy(),
        units_N,
        learner.num_classes,
        privacy.count_coordinate,
    )


SCORES_BOUND = math.sqrt(2.0)
"""Norm of one correctly predicted picture's part in the counts of the scores."""


def noisy_scores(
    learner: Learner, examples: Examples, units_N: Units, event: PrivacyEvent
) -> dict[str, float]:
    """Noisy counts of validation pictures and of correct predictions."""
    counts_2 = clear_scores(learner, examples, units_N)
    noisy_2 = release(counts_2, make_grid(SCORES_BOUND, 2, event.noise_multiplier))
    return dict(zip(("examples", "correct"), noisy_2.tolist(), strict=True))


def clear_scores(learner: Learner, examples: Examples, units_N: Units) -> NDArray[np.float64]:
    """float64 (2,): validation pictures and correct predictions, before noise.

    Each unit contributes (pictures, correct), clipped to the norm of one correctly predicted
    picture, so that a subject with many pictures counts as one.
    """
    # Batch size 1: other pictures in a batch change the rounding of a picture's logits, which can
    # flip a tie. This way a unit affects only its own predictions.
    _, predicted_N = learner.evaluate(examples, 1)
    right_N = (predicted_N == examples.labels_N.numpy()).astype(np.float64)
    rows_N2 = np.stack([np.ones(len(right_N)), right_N], axis=1)
    units = int(units_N.max()) + 1 if len(units_N) else 0
    parts_U2 = np.zeros((units, 2))
    np.add.at(parts_U2, units_N, rows_N2)
    parts_U2 *= clip_scales((parts_U2**2).sum(axis=1), SCORES_BOUND)[:, None]
    total_2: NDArray[np.float64] = parts_U2.sum(axis=0)
    return total_2


class PrivateTraining:
    """DP-SGD of one site's learner (Abadi et al. 2016, https://arxiv.org/abs/1607.00133).

    Args:
        learner: Trained in place.
        examples: The site's training split.
        units_N: int64 (N,), privacy unit of each example.
        privacy: ``[privacy]``.

    Attributes:
        kind: The engine's name, never ``auto``.
    """

    def __init__(
        self, learner: Learner, examples: Examples, units_N: Units, privacy: PrivacySettings
    ) -> None:
        if (refusal := learner.loss.refusal()) is not None:
            raise refusal
        # No mixing here: recipes that mix pictures were refused before.
        self._learner = learner
        self.loss = learner.loss.informed(examples.known)
        self._examples = examples
        self._privacy = privacy
        self._units_N = units_N
        self._count = int(units_N.max()) + 1 if len(units_N) else 0
        self._parameters = list(trained_parameters(learner.model).values())
        self.generator = torch.Generator()
        self.kind = self._choose_engine()
        self.engine: GradientEngine = self._make_engine()

    def run(self, step: PrivacyEvent, public_units: int, stretch: Stretch) -> None:
        """Train in place for ``step.count`` steps.

        Args:
            step: The privacy event that each step pays for.
            public_units: Declared units; times the sampling rate, the divisor of noisy sums.
            stretch: The round's place in the run.
        """
        settings = self._learner.settings
        if self._privacy.lr_distance is not None:
            steps, size = step.count * stretch.rounds, size_of(self._parameters)
            rate = learning_rate(step, steps, self._privacy, public_units, size)
            # With momentum each gradient counts 1 / (1 - momentum) times in total.
            settings = settings.model_copy(update={"lr": rate * (1 - settings.momentum)})
        groups = parameter_groups(self._learner.model, settings.lr, settings.layer_decay)
        optimizer = make_optimizer(groups, settings)
        # Averaging released, noisy steps is post-processing: it has no privacy cost.
        averaged = Averaged(self._parameters, settings.ema)
        scheduler = make_scheduler(optimizer, settings, stretch, step.count)
        noise, count_noise = gradient_noise(step, self._privacy)
        bound = self._privacy.clipping_norm
        divisor = step.sampling_rate * max(public_units, 1)
        with self._drawing():
            for _ in range(step.count):
                self.generator.manual_seed(fresh_seed())
                batch = self.draw(step.sampling_rate)
                summed = self.engine.clipped_sum(batch, bound)
                grid = make_grid(bound, summed.total_D.numel(), noise)
                noisy_D = release(summed.total_D.cpu().numpy(), grid) / divisor
                self._apply(noisy_D)
                optimizer.step()
                scheduler.step()
                averaged.step()
                if np.isfinite(count_noise):
                    bound = self._next_bound(bound, summed.unclipped, batch, count_noise, divisor)
        averaged.take_over()

    def summed(self, step: PrivacyEvent) -> NDArray[np.float64]:
        """float64 (D,): the clipped gradients of one step, before noise, by the tensors' names.

        Only for a sum that adds the noise, see ``secure``: the receiver takes the step. Which units
        are drawn stays secret, as in :meth:`run`.

        Args:
            step: The privacy event that the step pays for.
        """
        model = self._learner.model
        with self._drawing():
            total_D = self.engine.clipped_sum(
                self.draw(step.sampling_rate), self._privacy.clipping_norm
            ).total_D
        names = list(trained_parameters(model))
        parts = total_D.cpu().numpy().astype(np.float64)
        ends = np.cumsum([p.numel() for p in self._parameters])
        by_name = dict(zip(names, np.split(parts, ends[:-1]), strict=True))
        return np.concatenate([by_name[name] for name in sorted(names)])

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Context of steps: the model trains, random draws are secret, the engine is attached."""
        # In closed form the model is not called, and setting the mode of a large frozen backbone
        # takes as long as the steps.
        model = self._learner.model if self.kind != "closed-form" else None
        if model is not None:
            model.train()
        with torch.random.fork_rng(devices=[]), self.engine.session():
            self._seed()
            yield
        if model is not None:
            model.eval()

    def _seed(self) -> None:
        """Views and dropout must be secret, and independent of which other units are sampled."""
        # Not torch.manual_seed: even without GPUs it takes as long as two steps.
        torch.default_generator.manual_seed(fresh_seed())
        if self._parameters[0].device.type == "cuda":
            torch.cuda.manual_seed_all(fresh_seed())
        self.generator.manual_seed(fresh_seed())

    def draw(self, rate: float) -> UnitBatch:
        """Draw a Poisson sample of units, with all their examples."""
        drawn = draw_units(self._count, rate)
        number = np.full(self._count, -1, dtype=np.int64)
        number[drawn] = np.arange(len(drawn))
        positions = np.flatnonzero(number[self._units_N] >= 0).astype(np.int64)
        return UnitBatch(positions, number[self._units_N[positions]], len(drawn))

    def _apply(self, noisy_D: NDArray[np.float64]) -> None:
        start = 0
        for parameter in self._parameters:
            part = noisy_D[start : start + parameter.numel()]
            start += parameter.numel()
            values = torch.from_numpy(part.astype(np.float32)).reshape(parameter.shape)
            parameter.grad = values.to(parameter.device)

    def _next_bound(
        self, bound: float, unclipped: int, batch: UnitBatch, count_noise: float, divisor: float
    ) -> float:
        # Each unit adds plus or minus 1/2, so that the sensitivity is 1/2.
        signs = np.array([unclipped - batch.count / 2])
        noisy = release(signs, make_grid(0.5, 1, 2 * count_noise))
        # Clipped to 0..1: with few units, the noise would make the bound unstable.
        share = float(np.clip(noisy[0] / divisor + 0.5, 0.0, 1.0))
        wanted = self._privacy.clipping_quantile
        moved = bound * float(np.exp(-CLIPPING_RATE * (share - wanted)))
        # Limits keep the bound from overflowing or vanishing by chance.
        return float(np.clip(moved, 1e-6, 1e6))

    def _choose_engine(self) -> Engine:
        if self._privacy.engine != "auto":
            return self._privacy.engine
        if self._closed_form_fits():
            return "closed-form"
        return "opacus" if self._parameters[0].device.type == "cuda" else "loop"

    def _make_engine(self) -> GradientEngine:
        if self.kind == "closed-form":
            if not self._closed_form_fits():
                raise PolicyRefusal(
                    "privacy.engine = 'closed-form' needs a linear or cosine head on features of "
                    "a frozen backbone, without dropout.",
                    remedy="Set privacy.engine = 'auto'.",
                )
            assert isinstance(self._examples, FeatureExamples)
            return ClosedFormEngine(
                self._head_view, self._examples.features_ND, self._examples.labels_N
            )
        views, at_once = self._privacy.views, self._privacy.physical_batch
        if self.kind == "opacus":
            from fgvc_core.privacy.hooks import OpacusEngine

            return OpacusEngine(self._learner.model, self._parameters, self.losses, views, at_once)
        if self.kind == "batched":
            return BatchedEngine(self._learner.model, self._parameters, self.losses, views, at_once)
        return LoopEngine(self._parameters, self.losses, views, at_once, self._learner.model)

    def _closed_form_fits(self) -> bool:
        model = self._learner.model
        return (
            isinstance(self._examples, FeatureExamples)
            and type(model.head) in (LinearHead, CosineHead)
            and type(self._learner.loss) is SmoothedCrossEntropy
            and model.dropout.p == 0
            and len(self._parameters) == len(list(model.head.parameters()))
            and size_of(self._parameters) == size_of(list(model.head.parameters()))
        )

    def _head_view(self) -> HeadView:
        head = self._learner.model.head
        loss = self._learner.loss
        assert isinstance(loss, SmoothedCrossEntropy)
        smoothing = loss.smoothing
        if isinstance(head, CosineHead):
            return HeadView(head.weight, None, head.scale, smoothing)
        assert isinstance(head, LinearHead)
        return HeadView(head.weight, head.bias, None, smoothing)

    def losses(self, positions: torch.Tensor) -> torch.Tensor:
        """Current losses (B,) of the pictures at B positions, each in a fresh random view."""
        model = self._learner.model
        lesson = Lesson(*self._examples.lesson(model, positions, self.generator))
        if lesson.targets.ndim != 1:
            raise PolicyRefusal(
                "augment.mix is refused under [privacy].",
                why="It couples the examples of a batch: no single one's part can be bounded.",
                remedy="Leave it out.",
            )
        logits_BK = model.classify(lesson.features_ND)
        maps = () if lesson.part_maps_NKHW is None else (lesson.part_maps_NKHW,)
        return self.loss.per_example(logits_BK, lesson.targets.to(logits_BK.device), *maps)
