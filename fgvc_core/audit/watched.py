"""Private training that shows its releases to an attacker and includes planted units."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.privacy.gradients import LossOf
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.training.examples import Examples, Lesson
from fgvc_core.training.learner import Learner
from fgvc_core.training.private import PrivateTraining, Units

if TYPE_CHECKING:
    from fgvc_core.models.classifier import FineGrainedClassifier

See = Callable[[NDArray[np.float64]], None]
"""Called with each noisy mean gradient (D,), before the model is updated with it."""


class WatchedTraining(PrivateTraining):
    """Private training with two overridden methods; neither changes how pictures are processed.

    Args:
        learner: Trained in place.
        examples: Pictures; positions beyond them belong to planted units.
        units_N: int64, the unit of each position.
        privacy: ``[privacy]``.
        see: The attacker's callback.
        plant: Losses of planted units by number; None if they are examples.
    """

    def __init__(
        self,
        learner: Learner,
        examples: Examples,
        units_N: Units,
        privacy: PrivacySettings,
        see: See,
        plant: LossOf | None,
    ) -> None:
        super().__init__(learner, examples, units_N, privacy)
        self._see = see
        self._plant = plant
        self._pictures = len(examples)

    def _apply(self, noisy_D: NDArray[np.float64]) -> None:
        self._see(noisy_D)
        super()._apply(noisy_D)

    def losses(self, positions: torch.Tensor) -> torch.Tensor:
        """See :class:`PrivateTraining`."""
        # The loop handles one unit at a time, so positions never mix pictures and planted units.
        if self._plant is not None and int(positions[0]) >= self._pictures:
            return self._plant(positions - self._pictures)
        return super().losses(positions)


class Chosen(Examples):
    """A subset of the examples, by position; see :class:`Examples`."""

    def __init__(self, examples: Examples, rows: NDArray[np.int64]) -> None:
        self._examples = examples
        self._rows = torch.from_numpy(rows)
        self.labels_N = examples.labels_N[self._rows]
        self.known = examples.known

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, positions: NDArray[np.int64]) -> "Chosen":
        """See :class:`Examples`."""
        return Chosen(self._examples, self._rows.numpy()[positions])

    def features(
        self,
        model: "FineGrainedClassifier",
        positions: torch.Tensor,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """See :class:`Examples`."""
        return self._examples.features(model, self._rows[positions], generator)

    def lesson(
        self, model: "FineGrainedClassifier", positions: torch.Tensor, generator: torch.Generator
    ) -> Lesson:
        """See :class:`Examples`."""
        return self._examples.lesson(model, self._rows[positions], generator)
