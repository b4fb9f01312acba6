"""What a loss is, what it is given, and what it says of itself."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Answers:
    """What a model made of a batch.

    Attributes:
        logits_NK: Scores of the K classes.
        features_ND: The vectors before the head; None where only logits are known.
        class_vectors_KD: The head's own vector for each class; None where it has none.
        part_maps_NKHW: Where each of the model's parts looks; None where it has none that train.
    """

    logits_NK: torch.Tensor
    features_ND: torch.Tensor | None = None
    class_vectors_KD: torch.Tensor | None = None
    part_maps_NKHW: torch.Tensor | None = None


@dataclass(frozen=True)
class ClassKnowledge:
    """What is publicly known of the classes, for losses that use it.

    Attributes:
        taxonomy: K tuples of names from coarse to fine, ending in the class; empty if none.
        attributes_KA: float32 (K, A) in 0 to 1, or None.
    """

    taxonomy: tuple[tuple[str, ...], ...] = ()
    attributes_KA: torch.Tensor | None = None


class Loss(nn.Module):
    """Logits (N, K) and targets to one number, the mean over the batch.

    Targets are labels, int64 (N,), or shares of the classes, float (N, K), where pictures
    were mixed.

    Attributes:
        couples_examples: Whether one example's gradient depends on another's. Under
            differential privacy a coupling loss is refused: no single example's part of the
            gradient can be bounded.
        counts_privately: Whether it is made from the site's own class counts, which
            differential privacy would have to charge: refused there too.
    """

    couples_examples: bool = False
    counts_privately: bool = False

    def forward(self, logits_NK: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        """The mean loss in nats."""
        return self.of(Answers(logits_NK), labels_N)

    def of(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """The mean loss of a model's answers."""
        return self.each(answers, labels_N).mean()

    def per_example(
        self,
        logits_NK: torch.Tensor,
        labels_N: torch.Tensor,
        part_maps_NKHW: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The losses (N,) of single examples; where examples are coupled there are none."""
        return self.each(Answers(logits_NK, part_maps_NKHW=part_maps_NKHW), labels_N)

    def each(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """The losses (N,) of single examples, of a model's answers."""
        raise TypeError("a loss that does not couple examples says what each one's is")

    def counted(self, counts_K: torch.Tensor) -> "Loss":
        """This loss for a site whose training split has so many examples of each class."""
        return self

    def informed(self, known: ClassKnowledge) -> "Loss":
        """This loss with what is known of the classes.

        Raises:
            ConfigurationError: if it needs more than that.
        """
        return self
