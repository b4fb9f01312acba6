"""What a model learns from and is scored on: pictures, or features computed once.

Both hand out logits for positions, so that the loop and the evaluation need not
know which of the two they are given.
"""

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fgvc_core.data.pictures import PictureBank
    from fgvc_core.data.transforms import Augment
    from fgvc_core.models.classifier import FineGrainedClassifier


class Examples(Protocol):
    """N labelled examples."""

    labels_N: torch.Tensor
    """int64 (N,) on the CPU."""

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


class PictureExamples:
    """Pictures through the whole model, augmented in training."""

    def __init__(
        self, bank: "PictureBank", labels_N: NDArray[np.int64], augment: "Augment | None"
    ) -> None:
        self.bank = bank
        self.labels_N = torch.from_numpy(np.array(labels_N, dtype=np.int64))
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels_N)

    def logits(
        self,
        model: "FineGrainedClassifier",
        positions: torch.Tensor,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """See :class:`Examples`."""
        images_NCHW = self.bank.batch(positions.numpy())
        if generator is not None and self.augment is not None:
            images_NCHW = self.augment(images_NCHW, generator)
        device = next(model.parameters()).device
        return model(model.normalise(images_NCHW.to(device, non_blocking=True)))


class FeatureExamples:
    """Features of a frozen backbone through the head alone."""

    def __init__(self, features_ND: torch.Tensor, labels_N: NDArray[np.int64]) -> None:
        self.features_ND = features_ND
        self.labels_N = torch.from_numpy(np.array(labels_N, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.labels_N)

    def logits(
        self,
        model: "FineGrainedClassifier",
        positions: torch.Tensor,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """See :class:`Examples`."""
        device = next(model.parameters()).device
        return model.classify(self.features_ND[positions].to(device))
