"""Interface of losses, cross-entropy, weighted sums, and building of the loss from ``[loss]``."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from fgvc_core.components import LOSSES
from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.losses.settings import LossSettings


@dataclass(frozen=True)
class Answers:
    """A model's outputs for a batch.

    Attributes:
        logits_NK: Logits of the K classes.
        features_ND: Vectors before the head; None if only logits are known.
        class_vectors_KD: The head's vector of each class; None if it has none.
        part_maps_NKHW: Attention maps of the model's parts; None if it has no trainable ones.
    """

    logits_NK: torch.Tensor
    features_ND: torch.Tensor | None = None
    class_vectors_KD: torch.Tensor | None = None
    part_maps_NKHW: torch.Tensor | None = None


@dataclass(frozen=True)
class ClassKnowledge:
    """Public knowledge about the classes, for losses that use it.

    Attributes:
        taxonomy: K tuples of names from coarse to fine, ending in the class; empty if none.
        attributes_KA: float32 (K, A) in 0 to 1, or None.
    """

    taxonomy: tuple[tuple[str, ...], ...] = ()
    attributes_KA: torch.Tensor | None = None


class Loss(nn.Module):
    """Maps logits (N, K) and targets to the mean loss over the batch.

    Targets are labels, int64 (N,), or class shares, float (N, K), of mixed pictures.

    Attributes:
        couples_examples: Whether one example's gradient depends on another's. Differential
            privacy refuses such a loss, because no single example's contribution to the
            gradient can be bounded.
        counts_privately: Whether it uses the site's own class counts. Differential privacy
            refuses it too, because the counts would have to be charged.
        setting: The setting that selects it, for messages; set by :func:`build_loss`.
    """

    couples_examples: bool = False
    counts_privately: bool = False
    setting: str = "loss"

    def refusal(self) -> PolicyRefusal | None:
        """Why differential privacy cannot bound this loss, naming its setting; None if it can.

        The recipe, the site and the compatibility check before private training call it.
        """
        if self.couples_examples:
            return PolicyRefusal(
                f"{self.setting} is refused under [privacy].",
                why="It couples the examples of a batch: no single one's part can be bounded.",
                remedy="Leave it out.",
            )
        if self.counts_privately:
            return PolicyRefusal(
                f"{self.setting} with a site's own counts is refused under [privacy].",
                why="Class weights computed from private counts are a release of their own.",
                remedy="Give public numbers in loss.class_counts, or set loss.balance = 'none'.",
            )
        return None

    def forward(self, logits_NK: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        """Mean loss in nats."""
        return self.of(Answers(logits_NK), labels_N)

    def of(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """Mean loss of a model's outputs."""
        return self.each(answers, labels_N).mean()

    def per_example(
        self,
        logits_NK: torch.Tensor,
        labels_N: torch.Tensor,
        part_maps_NKHW: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Losses (N,) of single examples; undefined if examples are coupled."""
        return self.each(Answers(logits_NK, part_maps_NKHW=part_maps_NKHW), labels_N)

    def each(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """Losses (N,) of single examples, from a model's outputs."""
        raise TypeError("a loss that does not couple examples says what each one's is")

    def counted(self, counts_K: torch.Tensor, shares_K: torch.Tensor | None = None) -> "Loss":
        """This loss for a site with the given class counts in its training split.

        Args:
            counts_K: The site's own.
            shares_K: Shares of the classes over all sites; None if unknown.
        """
        return self

    def informed(self, known: ClassKnowledge) -> "Loss":
        """This loss with public knowledge about the classes.

        Raises:
            ConfigurationError: if it needs knowledge that is missing.
        """
        return self


class SmoothedCrossEntropy(Loss):
    """Cross-entropy with label smoothing.

    Szegedy et al. 2016, section 7, https://arxiv.org/abs/1512.00567.

    Args:
        smoothing: Share of the target that is spread over all classes, 0 to 1.
    """

    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing

    def each(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Loss`."""
        return F.cross_entropy(
            answers.logits_NK, labels_N, label_smoothing=self.smoothing, reduction="none"
        )


class WeightedSum(Loss):
    """The weighted sum of losses; it couples examples if one of them does.

    Args:
        terms: (weight, loss), at least one.
    """

    def __init__(self, terms: Sequence[tuple[float, Loss]]) -> None:
        super().__init__()
        self.weights = [weight for weight, _ in terms]
        self.terms = nn.ModuleList(loss for _, loss in terms)
        self.couples_examples = any(loss.couples_examples for _, loss in terms)
        self.counts_privately = any(loss.counts_privately for _, loss in terms)

    def refusal(self) -> PolicyRefusal | None:
        """Refusal of the first term that has one."""
        return next(filter(None, (loss.refusal() for _, loss in self._pairs())), None)

    def of(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Loss`."""
        values = [w * loss.of(answers, labels_N) for w, loss in self._pairs()]
        return torch.stack(values).sum()

    def each(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Loss`."""
        values = [w * loss.each(answers, labels_N) for w, loss in self._pairs()]
        return torch.stack(values).sum(dim=0)

    def counted(self, counts_K: torch.Tensor, shares_K: torch.Tensor | None = None) -> Loss:
        """See :class:`Loss`."""
        return WeightedSum([(w, loss.counted(counts_K, shares_K)) for w, loss in self._pairs()])

    def informed(self, known: ClassKnowledge) -> Loss:
        """See :class:`Loss`."""
        return WeightedSum([(w, loss.informed(known)) for w, loss in self._pairs()])

    def _pairs(self) -> list[tuple[float, Loss]]:
        return list(zip(self.weights, self.terms, strict=True))  # type: ignore[arg-type]


@LOSSES.register("cross-entropy")
def cross_entropy(settings: LossSettings) -> Loss:
    """Build the cross-entropy selected by ``loss.balance``."""
    if settings.balance == "none":
        return SmoothedCrossEntropy(settings.label_smoothing)
    from fgvc_core.losses.classification import BalancedCrossEntropy

    return BalancedCrossEntropy(
        settings.balance,
        settings.label_smoothing,
        settings.balance_beta,
        settings.balance_strength,
        torch.tensor(settings.class_counts) if settings.class_counts else None,
        settings.balance_prior,
        settings.balance_shares == "all",
    )


def build_loss(settings: LossSettings) -> Loss:
    """Build the loss of ``[loss]``: a cross-entropy plus weighted terms.

    Raises:
        ConfigurationError: if an installed component is broken, or does not return a loss.
    """
    tables = settings.tables()
    alone = any(getattr(table, "alone", False) for table in tables.values())
    weights = {name: getattr(settings, name, 1.0) for name in LOSSES.built_in}
    weights["cross-entropy"] = 0.0 if alone else 1.0
    weights |= {name: getattr(table, "weight", 1.0) for name, table in tables.items()}
    terms = []
    for name, weight in weights.items():
        if not weight:
            continue
        # Loaded lazily, because some import large libraries.
        component = LOSSES.get(name)
        loss = component.make(settings.settings_of(component))
        if not isinstance(loss, Loss):
            raise ConfigurationError(
                f"loss.{name} makes a {type(loss).__name__}, which is no Loss.",
                remedy="Derive it from fgvc_core.losses.base.Loss.",
            )
        if name != "cross-entropy":
            loss.setting = f"loss.{name}"
        terms.append((weight, loss))
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1.0 else WeightedSum(terms)
