"""What a model learns from and is scored on: pictures, or features computed once.

Both hand out logits for positions, so that the loop and the evaluation need not
know which of the two they are given.
"""

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.losses.base import ClassKnowledge

if TYPE_CHECKING:
    from fgvc_core.data.pictures import PictureBank
    from fgvc_core.data.table import ExampleTable
    from fgvc_core.data.transforms import Augment, Mixing
    from fgvc_core.models.classifier import FineGrainedClassifier


NOTHING_KNOWN = ClassKnowledge()


def knowledge_of(table: "ExampleTable") -> ClassKnowledge:
    """What a table says of its classes."""
    attributes_KA = table.attributes_KA
    return ClassKnowledge(
        table.taxonomy, None if attributes_KA is None else torch.from_numpy(attributes_KA)
    )


class Lesson(NamedTuple):
    """What one training step is given.

    Attributes:
        features_ND: Vectors before the head.
        targets: Labels (N,), or shares of the classes (N, K) where pictures were mixed.
        part_maps_NKHW: Where the model's parts look, if it has any that train.
    """

    features_ND: torch.Tensor
    targets: torch.Tensor
    part_maps_NKHW: torch.Tensor | None = None


class Examples(Protocol):
    """N labelled examples."""

    labels_N: torch.Tensor
    """int64 (N,) on the CPU."""

    known: ClassKnowledge
    """What is publicly known of their classes."""

    def __len__(self) -> int: ...

    def logits(
        self,
        model: "FineGrainedClassifier",
        positions: torch.Tensor,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """The model's logits (B, K) for B positions.

        With a generator the examples are seen as in training (random views drawn from
        it); without one exactly as they are.
        """
        ...

    def features(
        self,
        model: "FineGrainedClassifier",
        positions: torch.Tensor,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """The vectors (B, D) before the head, for the same arguments."""
        ...

    def lesson(
        self, model: "FineGrainedClassifier", positions: torch.Tensor, generator: torch.Generator
    ) -> Lesson:
        """A training step's vectors and targets, in random views drawn from the generator."""
        ...


class PictureExamples:
    """Pictures through the whole model, augmented in training."""

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
        """The examples at these positions, in their order."""
        labels_M = self.labels_N.numpy()[positions]
        bank = self.bank.take(positions)
        return PictureExamples(bank, labels_M, self.augment, self.known, self.mixing)

    def logits(
        self,
        model: "FineGrainedClassifier",
        positions: torch.Tensor,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """See :class:`Examples`."""
        return model.classify(self.features(model, positions, generator))

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


class FeatureExamples:
    """Features of a frozen backbone through the head alone."""

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
        """The examples at these positions, in their order."""
        labels_M = self.labels_N.numpy()[positions]
        return FeatureExamples(self.features_ND[positions], labels_M, self.known)

    def logits(
        self,
        model: "FineGrainedClassifier",
        positions: torch.Tensor,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """See :class:`Examples`."""
        return model.classify(self.features(model, positions, generator))

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
