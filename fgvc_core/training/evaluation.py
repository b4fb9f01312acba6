"""Scores from confusion counts, so that any split can be summed before it is divided.

Averages of averages lie when sites differ in size; counts add up. Macro figures are
means over the classes that have at least one example in the split; a class that is
never predicted has precision 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fgvc_core.training.examples import Examples

if TYPE_CHECKING:
    from fgvc_core.models.classifier import FineGrainedClassifier


@dataclass(frozen=True)
class Evaluation:
    """What a model did on one split.

    Attributes:
        confusion_KK: int64 (K, K); rows are the true class, columns the predicted one.
        loss_sum: Sum over examples of the cross-entropy in nats.
    """

    confusion_KK: NDArray[np.int64]
    loss_sum: float

    @property
    def examples(self) -> int:
        """How many examples were scored."""
        return int(self.confusion_KK.sum())

    @property
    def correct(self) -> int:
        """How many were right."""
        return int(np.trace(self.confusion_KK))

    @property
    def top1(self) -> float:
        """Share that was right, 0 to 1; 0 for an empty split."""
        return self.correct / max(self.examples, 1)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats; 0 for an empty split."""
        return self.loss_sum / max(self.examples, 1)

    @property
    def recall_K(self) -> NDArray[np.float64]:
        """float64 (K,), share of each class that was found; 0 where there is none."""
        return _divide(np.diag(self.confusion_KK), self.confusion_KK.sum(axis=1))

    @property
    def precision_K(self) -> NDArray[np.float64]:
        """float64 (K,), share of each class's predictions that were right."""
        return _divide(np.diag(self.confusion_KK), self.confusion_KK.sum(axis=0))

    @property
    def f1_K(self) -> NDArray[np.float64]:
        """float64 (K,), harmonic mean of precision and recall."""
        both = self.confusion_KK.sum(axis=0) + self.confusion_KK.sum(axis=1)
        return _divide(2 * np.diag(self.confusion_KK), both)

    @property
    def macro_recall(self) -> float:
        """Mean recall over the classes present."""
        return self._macro(self.recall_K)

    @property
    def macro_precision(self) -> float:
        """Mean precision over the classes present."""
        return self._macro(self.precision_K)

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes present."""
        return self._macro(self.f1_K)

    def _macro(self, values_K: NDArray[np.float64]) -> float:
        present_K = self.confusion_KK.sum(axis=1) > 0
        return float(values_K[present_K].mean()) if present_K.any() else 0.0

    def level_top1(self, taxonomy: Sequence[Sequence[str]], level: int) -> float:
        """Share whose predicted class has the right name at a level of the taxonomy, 0 to 1.

        A wrong species in the right family counts here, with the family's level.

        Args:
            taxonomy: K tuples of names from coarse to fine.
            level: Which of them, 0 being the coarsest.
        """
        names = np.array([chain[level] for chain in taxonomy])
        right_KK = names[:, None] == names[None, :]
        return float(self.confusion_KK[right_KK].sum()) / max(self.examples, 1)

    def among(self, kept_K: NDArray[np.bool_]) -> "Evaluation":
        """The rows of some true classes alone; their loss is not known apart and is 0."""
        return Evaluation(self.confusion_KK * kept_K[:, None], 0.0)

    def most_confused(self, count: int) -> list[tuple[int, int, int]]:
        """The largest off-diagonal cells as (true, predicted, how many), largest first."""
        wrong_KK = self.confusion_KK.copy()
        np.fill_diagonal(wrong_KK, 0)
        order = np.argsort(-wrong_KK, axis=None, kind="stable")[:count]
        cells = [divmod(int(flat), wrong_KK.shape[1]) for flat in order]
        return [(t, p, int(wrong_KK[t, p])) for t, p in cells if wrong_KK[t, p] > 0]


@torch.inference_mode()
def evaluate(
    model: "FineGrainedClassifier",
    examples: Examples,
    num_classes: int,
    batch_size: int,
    among_K: NDArray[np.bool_] | None = None,
) -> tuple[Evaluation, NDArray[np.int64]]:
    """Score a model.

    Args:
        model: Which.
        examples: What it is scored on.
        num_classes: K.
        batch_size: Examples at once.
        among_K: The classes that it may choose among; by default all. The loss is of all.

    Returns:
        The evaluation, and int64 (N,) predicted classes in the order of the examples.
    """
    was_training = model.training
    model.eval()
    predicted = []
    loss_sum = 0.0
    for start in range(0, len(examples), batch_size):
        positions = torch.arange(start, min(start + batch_size, len(examples)))
        logits_NK = examples.logits(model, positions, None)
        labels_N = examples.labels_N[positions].to(logits_NK.device)
        loss_sum += float(F.cross_entropy(logits_NK, labels_N, reduction="sum"))
        if among_K is not None:
            barred_K = torch.from_numpy(~among_K).to(logits_NK.device)
            logits_NK = logits_NK.masked_fill(barred_K, -torch.inf)
        predicted.append(logits_NK.argmax(dim=1).cpu())
    model.train(was_training)
    predicted_N = torch.cat(predicted).numpy() if predicted else np.zeros(0, dtype=np.int64)
    cells = examples.labels_N.numpy() * num_classes + predicted_N
    counts = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    return Evaluation(counts.astype(np.int64), loss_sum), predicted_N


def _divide(part_K: NDArray[np.int64], whole_K: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(part_K, whole_K, out=np.zeros(len(part_K)), where=whole_K > 0)
