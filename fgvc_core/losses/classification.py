"""Cross-entropy with label smoothing."""

import torch
from torch.nn import functional as F

from fgvc_core.losses.base import Answers, Loss


class SmoothedCrossEntropy(Loss):
    """Cross-entropy against targets of which a share is spread over all classes.

    Szegedy et al. 2016, section 7, https://arxiv.org/abs/1512.00567.

    Args:
        smoothing: That share, 0 to 1.
    """

    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing

    def each(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Loss`."""
        return F.cross_entropy(
            answers.logits_NK, labels_N, label_smoothing=self.smoothing, reduction="none"
        )
