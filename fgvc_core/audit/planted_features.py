"""Planted features for heads on cached features, whose gradients have a closed form.

The engine for these heads takes features and labels, not a loss. A planted unit is a feature vector
in a random direction with some label. The attacker knows the current head and computes the unit's
gradient from it, independently of the mechanism.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fgvc_core.losses.base import SmoothedCrossEntropy
from fgvc_core.models.heads import CosineHead, LinearHead
from fgvc_core.training.learner import Learner

LEAST_LENGTH = 10.0
"""Least length of a planted feature for a linear head: much longer than the constant 1 of its
bias, which all canaries share."""


class PlantedFeatures:
    """Canaries for a linear or cosine head.

    Args:
        learner: Its head is a :class:`LinearHead` or a :class:`CosineHead`.
        count: M, at most classes times features.
        length: Least norm of a canary's gradient before training.
        generator: Draws the directions.

    Attributes:
        features_MD: float32 (M, D).
        labels_M: int64 (M,).
        copies: Number of equal pictures of each unit.
    """

    def __init__(
        self, learner: Learner, count: int, length: float, generator: np.random.Generator
    ) -> None:
        head = learner.model.head
        assert isinstance(head, LinearHead | CosineHead)
        classes, features = head.weight.shape
        self._head = head
        loss = learner.loss
        # The closed form below holds for this loss only.
        assert isinstance(loss, SmoothedCrossEntropy)
        self._smoothing = loss.smoothing
        directions_MD, self.labels_M = orthogonal_by_class(count, classes, features, generator)
        # Gradient norm of the loss in the logits, for an untrained head.
        push = math.sqrt(1 - 1 / classes)
        if isinstance(head, CosineHead):
            size, self.copies = 1.0, math.ceil(length / (push * head.scale))
        else:
            size, self.copies = max(length / push, LEAST_LENGTH), 1
        self.features_MD = (directions_MD * size).astype(np.float32)

    def along(
        self, values_D: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See :class:`~fgvc_core.audit.planted.GradientCanaries`."""
        with torch.no_grad():
            raw_M, squares_M = self._raw(torch.from_numpy(values_D))
        lengths_M = squares_M.clamp_min(1e-24).sqrt()
        return (raw_M / lengths_M).numpy(), (lengths_M * self.copies).numpy()

    def _raw(self, values_D: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inner products with the gradient of one picture of each unit, and its squared norm."""
        head = self._head
        weight_KD = head.weight.detach().double().cpu()
        values_KD = values_D[: weight_KD.numel()].reshape(weight_KD.shape)
        inputs_MD = torch.from_numpy(self.features_MD).double()
        if isinstance(head, LinearHead):
            push_MK = self._push(inputs_MD @ weight_KD.T + head.bias.detach().double().cpu())
            turned_MK = inputs_MD @ values_KD.T + values_D[weight_KD.numel() :]
            squares_M = push_MK.square().sum(dim=1) * (inputs_MD.square().sum(dim=1) + 1)
            return (push_MK * turned_MK).sum(dim=1), squares_M
        lengths_K = weight_KD.norm(dim=1).clamp_min(1e-12)
        directions_KD = weight_KD / lengths_K[:, None]
        along_MK = inputs_MD @ directions_KD.T
        push_MK = self._push(head.scale * along_MK) * head.scale / lengths_K
        turned_MK = inputs_MD @ values_KD.T - along_MK * (directions_KD * values_KD).sum(dim=1)
        squares_M = (push_MK.square() * (1 - along_MK.square())).sum(dim=1)
        return (push_MK * turned_MK).sum(dim=1), squares_M

    def _push(self, logits_MK: torch.Tensor) -> torch.Tensor:
        classes = logits_MK.shape[1]
        hot_MK = F.one_hot(torch.from_numpy(self.labels_M), classes).double()
        wanted_MK = hot_MK * (1 - self._smoothing) + self._smoothing / classes
        return logits_MK.softmax(dim=1) - wanted_MK


def orthogonal_by_class(
    count: int, classes: int, dimensions: int, generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Unit vectors (count, dimensions) and labels (count,); vectors of one label are orthogonal.

    Args:
        count: At most classes times dimensions.
        classes: Number of classes; labels are assigned in turn.
        dimensions: Length of the vectors.
        generator: Draws the directions.
    """
    labels_M = np.arange(count, dtype=np.int64) % classes
    vectors_MD = np.zeros((count, dimensions))
    for label in range(min(classes, count)):
        at = np.flatnonzero(labels_M == label)
        drawn = generator.standard_normal((dimensions, len(at)))
        vectors_MD[at] = np.linalg.qr(drawn)[0].T
    return vectors_MD, labels_M
