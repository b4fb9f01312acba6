"""Focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002)."""

import torch
from pydantic import Field
from torch.nn import functional as F

from fgvc_core.components import LOSSES
from fgvc_core.losses.base import Loss
from fgvc_core.registry import Weighted


class FocalSettings(Weighted):
    """The table [loss.focal] of a recipe; ``weight`` and ``alone`` come with every loss."""

    gamma: float = Field(2.0, ge=0.0, le=8.0, description="Focusing parameter, 0 to 8.")


@LOSSES.register("focal", settings=FocalSettings)
class Focal(Loss):
    """Cross-entropy in which pictures that are right already count less."""

    # A loss that compares the pictures of a batch with each other sets couples_examples = True:
    # under [privacy] it is then refused. This one looks at each picture alone.

    def __init__(self, settings: FocalSettings) -> None:
        super().__init__()
        self.gamma = settings.gamma

    def each(self, answers, labels_N: torch.Tensor) -> torch.Tensor:
        """float32 (N,), one loss for each picture."""
        losses_N = F.cross_entropy(answers.logits_NK, labels_N, reduction="none")
        return (1 - (-losses_N).exp()) ** self.gamma * losses_N
