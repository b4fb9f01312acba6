"""What a loss is, and what it says of itself."""

from typing import ClassVar

import torch
from torch import nn


class Loss(nn.Module):
    """Logits (N, K) and labels (N,) to one number, the mean over the batch.

    ``couples_examples`` says whether one example's gradient depends on another's. Under
    differential privacy a coupling loss is refused: no single example's part of the
    gradient can be bounded.
    """

    couples_examples: ClassVar[bool] = False

    def forward(self, logits_NK: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        """The mean loss in nats."""
        raise TypeError("a loss defines its own forward")

    def per_example(self, logits_NK: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        """The losses (N,) of single examples; where examples are coupled there are none."""
        raise TypeError("a loss that does not couple examples says what each one's is")
