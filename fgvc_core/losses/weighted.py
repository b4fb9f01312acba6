"""Several losses as one, each with its weight."""

from collections.abc import Sequence

import torch
from torch import nn

from fgvc_core.losses.base import Answers, ClassKnowledge, Loss


class WeightedSum(Loss):
    """The weighted sum of losses; it couples examples if one of them does.

    Args:
        terms: (weight, loss), one at least.
    """

    def __init__(self, terms: Sequence[tuple[float, Loss]]) -> None:
        super().__init__()
        self.weights = [weight for weight, _ in terms]
        self.terms = nn.ModuleList(loss for _, loss in terms)
        self.couples_examples = any(loss.couples_examples for _, loss in terms)
        self.counts_privately = any(loss.counts_privately for _, loss in terms)

    def of(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Loss`."""
        values = [w * loss.of(answers, labels_N) for w, loss in self._pairs()]
        return torch.stack(values).sum()

    def each(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Loss`."""
        values = [w * loss.each(answers, labels_N) for w, loss in self._pairs()]
        return torch.stack(values).sum(dim=0)

    def counted(self, counts_K: torch.Tensor) -> Loss:
        """See :class:`Loss`."""
        return WeightedSum([(w, loss.counted(counts_K)) for w, loss in self._pairs()])

    def informed(self, known: ClassKnowledge) -> Loss:
        """See :class:`Loss`."""
        return WeightedSum([(w, loss.informed(known)) for w, loss in self._pairs()])

    def _pairs(self) -> list[tuple[float, Loss]]:
        return list(zip(self.weights, self.terms, strict=True))  # type: ignore[arg-type]
