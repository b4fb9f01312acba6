"""Cross-entropy for classes of very unequal size, from how many examples each has.

``weights``: each class weighs by the inverse of its effective number of examples,
``(1 - beta^n) / (1 - beta)`` (Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of
Samples", equation 9, https://arxiv.org/abs/1901.05555). ``logits``: the log of each class's
share is added to its logit in training alone (Menon et al. 2021, "Long-tail learning via logit
adjustment", equation 10, https://arxiv.org/abs/2007.07314), so that what is left aims at
the balanced error. Either costs nothing. A warning: top-1 usually falls where macro-F1 rises,
and with a site's own counts each site corrects another imbalance.
"""

from typing import Literal

import torch
from torch.nn import functional as F

from fgvc_core.errors import ConfigurationError
from fgvc_core.losses.base import Answers, Loss

Kind = Literal["weights", "logits"]


class BalancedCrossEntropy(Loss):
    """Smoothed cross-entropy, balanced by class counts.

    Args:
        kind: ``weights`` or ``logits``.
        smoothing: As for :class:`SmoothedCrossEntropy`.
        beta: For ``weights``: 0 (no weights) to below 1 (inverse counts, nearly).
        strength: For ``logits``: what the log share is multiplied by.
        public_counts_K: Counts that are no secret; without them the site's own are used.
    """

    def __init__(
        self,
        kind: Kind,
        smoothing: float,
        beta: float,
        strength: float,
        public_counts_K: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.smoothing = smoothing
        self.beta = beta
        self.strength = strength
        self.counts_privately = public_counts_K is None
        self.counts_K = public_counts_K

    def counted(self, counts_K: torch.Tensor) -> Loss:
        """See :class:`Loss`; public counts stay what they are."""
        if not self.counts_privately:
            if self.counts_K is not None and len(self.counts_K) != len(counts_K):
                raise ConfigurationError(
                    f"loss.class_counts has {len(self.counts_K)} numbers for {len(counts_K)} "
                    "classes.",
                    remedy="Give one number a class, in the order of data.classes.",
                )
            return self
        bound = BalancedCrossEntropy(self.kind, self.smoothing, self.beta, self.strength)
        bound.counts_K = counts_K
        return bound

    def each(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Loss`; the weights' mean over the counted examples is 1."""
        logits_NK = answers.logits_NK
        counts_K = self.counts_K
        if counts_K is None:
            raise TypeError("a balanced loss is counted before it is used")
        counts_K = counts_K.to(logits_NK.device, torch.float64)
        if self.kind == "logits":
            share_K = (counts_K + 1) / (counts_K + 1).sum()
            logits_NK = logits_NK + (self.strength * share_K.log()).to(logits_NK.dtype)
        losses_N = F.cross_entropy(
            logits_NK, labels_N, label_smoothing=self.smoothing, reduction="none"
        )
        if self.kind == "logits":
            return losses_N
        weights_K = class_weights(counts_K, self.beta).to(losses_N.dtype)
        if labels_N.ndim == 2:
            return losses_N * (labels_N @ weights_K)
        return losses_N * weights_K[labels_N]


def class_weights(counts_K: torch.Tensor, beta: float) -> torch.Tensor:
    """float64 (K,): inverse effective numbers, scaled so that the examples' mean is 1.

    A class without an example weighs nothing.

    Args:
        counts_K: At least one example in all.
        beta: 0 to below 1.
    """
    counts_K = counts_K.double()
    effective_K = (1 - beta**counts_K) / (1 - beta)
    weights_K = torch.where(counts_K > 0, 1 / effective_K.clamp_min(1e-12), 0.0)
    return weights_K * counts_K.sum().clamp_min(1) / (weights_K * counts_K).sum().clamp_min(1e-12)
