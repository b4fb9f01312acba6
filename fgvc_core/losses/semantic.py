"""Cross-entropy against targets that are spread by how alike the classes are.

The share of a wrong class grows with its likeness to the right one, a softmax of the cosine
between their published attributes (soft labels as in Bertinetto et al. 2020, section 3.2,
https://arxiv.org/abs/1912.09393, with attributes in place of a tree). No parameters, no
coupling. Attributes must be public: computed from private pictures they would be a release.
A warning: like label smoothing it may help calibration and near misses more than top-1.
"""

import torch
from torch.nn import functional as F

from fgvc_core.errors import ConfigurationError
from fgvc_core.losses.base import Answers, ClassKnowledge, Loss


class SemanticCrossEntropy(Loss):
    """Cross-entropy with targets from class attributes.

    Args:
        temperature: Of the softmax over cosines; small values come near to one-hot targets.
        attributes_KA: Class attributes, or None until :meth:`informed`.
    """

    def __init__(self, temperature: float, attributes_KA: torch.Tensor | None = None) -> None:
        super().__init__()
        self.temperature = temperature
        self.targets_KK = (
            None if attributes_KA is None else soft_targets(attributes_KA, temperature)
        )

    def informed(self, known: ClassKnowledge) -> Loss:
        """See :class:`Loss`."""
        if known.attributes_KA is None:
            raise ConfigurationError(
                "loss.semantic > 0, but the data set has no class attributes.",
                why="How alike two classes are is told from them.",
                remedy="Set loss.semantic = 0, or take a data set with attributes (fieldmarks, "
                "cub).",
            )
        return SemanticCrossEntropy(self.temperature, known.attributes_KA)

    def each(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Loss`."""
        if self.targets_KK is None:
            raise TypeError("a semantic loss is informed before it is used")
        targets_KK = self.targets_KK.to(answers.logits_NK)
        targets_NK = (
            labels_N.to(targets_KK) @ targets_KK if labels_N.ndim == 2 else targets_KK[labels_N]
        )
        return F.cross_entropy(answers.logits_NK, targets_NK, reduction="none")


def soft_targets(attributes_KA: torch.Tensor, temperature: float) -> torch.Tensor:
    """float32 (K, K), rows that sum to 1: the targets of each class.

    Attributes are centred first: those that all classes share tell none apart.
    """
    centred_KA = attributes_KA.double() - attributes_KA.double().mean(dim=0)
    unit_KA = F.normalize(centred_KA, dim=1)
    return (unit_KA @ unit_KA.T / temperature).softmax(dim=1).float()
