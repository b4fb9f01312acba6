"""Examples to train and score on (pictures, or cached features), and scores from confusion counts.

Both kinds of examples return logits for positions, so that training and evaluation need not
distinguish them. Scores are computed from counts, because counts add up over sites and averages
do not. Macro figures are means over the classes with at least one example in the split; a class
that is never predicted has precision 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fgvc_core.losses.base import ClassKnowledge

if TYPE_CHECKING:
    from fgvc_core.data.pictures import PictureBank
    from fgvc_core.data.table import ExampleTable
    from fgvc_core.data.transforms import Augment, Mixing
    from fgvc_core.models.classifier import FineGrainedClassifier

NOTHING_KNOWN = ClassKnowledge()


def knowledge_of(table: "ExampleTable") -> ClassKnowledge:
    """Class knowledge from a table."""
    attributes_KA = table.attributes_KA
    return ClassKnowledge(
        table.taxonomy, None if attributes_KA is None else torch.from_numpy(attributes_KA)
    )


class Lesson(NamedTuple):
    """Inputs of one training step.

    Attributes:
        features_ND: Vectors before the head.
        targets: Labels (N,), or class shares (N, K) of mixed pictures.
        part_maps_NKHW: Attention maps of the model's trainable parts, if any.
    """

    features_ND: torch.Tensor
    targets: torch.Tensor
    part_maps_NKHW: torch.Tensor | None = None


class Examples(Protocol):
    """N labeled examples."""

    labels_N: torch.Tensor
    """int64 (N,) on the CPU."""

    known: ClassKnowledge
    """Public knowledge about the classes."""

    def __len__(self) -> int: ...

    def take(self, positions: NDArray[np.int64]) -> "Examples":
        """Examples at the given positions, in their order."""
        ...

    def logits(
        self,
        model: "FineGrainedClassifier",
        positions: torch.Tensor,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """The model's logits (B, K) for B positions.

        With a generator, the examples are random views drawn from it, as in training; without
        one, they are unchanged.
        """
        return model.classify(self.features(model, positions, generator))

    def features(
        self,
        model: "FineGrainedClassifier",
        positions: torch.Tensor,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """Vectors (B, D) before the head, for the same arguments."""
        ...

    def lesson(
        self, model: "FineGrainedClassifier", positions: torch.Tensor, generator: torch.Generator
    ) -> Lesson:
        """Vectors and targets of a training step, in random views drawn from the generator."""
        ...


class PictureExamples(Examples):
    """Pictures processed by the whole model, augmented in training."""

    def __init__(
        self,
        bank: "PictureBank",
        labels_N: NDArray[np.int64],
        augment: "Augment | None",
        known: ClassKnowledge = NOTHING_KNOWN,
        mixing: "Mixing | None" = None,
    ) -> None:
        self.known = known
        self.mixing = mixing
        self.bank = bank
        self.labels_N = torch.from_numpy(np.array(labels_N, dtype=np.int64))
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, positions: NDArray[np.int64]) -> "PictureExamples":
        """Examples at the given positions, in their order."""
        labels_M = self.labels_N.numpy()[positions]
        bank = self.bank.take(positions)
        return PictureExamples(bank, labels_M, self.augment, self.known, self.mixing)

    def features(
        self,
        model: "FineGrainedClassifier",
        positions: torch.Tensor,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """See :class:`Examples`."""
        return model.embed(_normalised(model, self._views(positions, generator)))

    def lesson(
        self, model: "FineGrainedClassifier", positions: torch.Tensor, generator: torch.Generator
    ) -> Lesson:
        """See :class:`Examples`."""
        images_NCHW, targets = self._views(positions, generator), self.labels_N[positions]
        if self.mixing is not None:
            images_NCHW, targets = self.mixing(images_NCHW, targets, generator)
        features_ND, maps_NKHW = model.embed_with_parts(_normalised(model, images_NCHW))
        return Lesson(features_ND, targets, maps_NKHW)

    def _views(self, positions: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        images_NCHW = self.bank.batch(positions.numpy())
        if generator is not None and self.augment is not None:
            images_NCHW = self.augment(images_NCHW, generator)
        return images_NCHW


class FeatureExamples(Examples):
    """Cached features of a frozen backbone, processed by the head only."""

    def __init__(
        self,
        features_ND: torch.Tensor,
        labels_N: NDArray[np.int64],
        known: ClassKnowledge = NOTHING_KNOWN,
    ) -> None:
        self.known = known
        self.features_ND = features_ND
        self.labels_N = torch.from_numpy(np.array(labels_N, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, positions: NDArray[np.int64]) -> "FeatureExamples":
        """Examples at the given positions, in their order."""
        labels_M = self.labels_N.numpy()[positions]
        return FeatureExamples(self.features_ND[positions], labels_M, self.known)

    def features(
        self,
        model: "FineGrainedClassifier",
        positions: torch.Tensor,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """See :class:`Examples`."""
        return self.features_ND[positions].to(next(model.parameters()).device)

    def lesson(
        self, model: "FineGrainedClassifier", positions: torch.Tensor, generator: torch.Generator
    ) -> Lesson:
        """See :class:`Examples`."""
        return Lesson(self.features(model, positions, generator), self.labels_N[positions])


def _normalised(model: "FineGrainedClassifier", images_NCHW: torch.Tensor) -> torch.Tensor:
    device = next(model.parameters()).device
    return model.normalise(images_NCHW.to(device, non_blocking=True))


@dataclass(frozen=True)
class Evaluation:
    """A model's results on one split.

    Attributes:
        confusion_KK: int64 (K, K); rows are the true class, columns the predicted one.
        loss_sum: Sum over examples of the cross-entropy in nats.
    """

    confusion_KK: NDArray[np.int64]
    loss_sum: float

    @property
    def examples(self) -> int:
        """Number of scored examples."""
        return int(self.confusion_KK.sum())

    @property
    def correct(self) -> int:
        """Number of correct predictions."""
        return int(np.trace(self.confusion_KK))

    @property
    def top1(self) -> float:
        """Accuracy, 0 to 1; 0 for an empty split."""
        return self.correct / max(self.examples, 1)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats; 0 for an empty split."""
        return self.loss_sum / max(self.examples, 1)

    @property
    def recall_K(self) -> NDArray[np.float64]:
        """float64 (K,), recall of each class; 0 if it has no examples."""
        return _divide(np.diag(self.confusion_KK), self.confusion_KK.sum(axis=1))

    @property
    def precision_K(self) -> NDArray[np.float64]:
        """float64 (K,), precision of each class; 0 if it is never predicted."""
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
        """Accuracy at a level of the taxonomy, 0 to 1.

        At the family level, a wrong species in the right family counts as correct.

        Args:
            taxonomy: K tuples of names from coarse to fine.
            level: Index of the level, 0 being the coarsest.
        """
        names = np.array([chain[level] for chain in taxonomy])
        right_KK = names[:, None] == names[None, :]
        return float(self.confusion_KK[right_KK].sum()) / max(self.examples, 1)

    def among(self, kept_K: NDArray[np.bool_]) -> "Evaluation":
        """Rows of some true classes only; their loss is unknown and set to 0."""
        return Evaluation(self.confusion_KK * kept_K[:, None], 0.0)

    def most_confused(self, count: int) -> list[tuple[int, int, int]]:
        """Largest off-diagonal cells as (true, predicted, count), largest first."""
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
        model: The model.
        examples: The examples to score it on.
        num_classes: K.
        batch_size: Examples per batch.
        among_K: Classes that may be predicted; by default all. The loss always covers all.

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
