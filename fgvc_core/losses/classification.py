"""Balanced, hierarchical and semantic cross-entropy, and the diversity of learned parts.

Balanced, for very unequal class sizes. ``weights``: each class has the inverse of its effective
number of examples as weight, ``(1 - beta^n) / (1 - beta)`` (Cui et al. 2019, "Class-Balanced Loss
Based on Effective Number of Samples", equation 9, https://arxiv.org/abs/1901.05555). ``logits``:
the log of each class's share is added to its logit in training only (Menon et al. 2021, "Long-tail
learning via logit adjustment", equation 10, https://arxiv.org/abs/2007.07314), which targets the
balanced error. Neither has a cost. Top-1 usually falls when macro-F1 rises. With a site's own
counts each site corrects its own imbalance, so that unlike sites fit one model of balanced classes
(Zhang et al. 2022, "Federated Learning with Label Distribution Skew via Logits Calibration",
https://arxiv.org/abs/2209.00189). ``prior`` subtracts a part of the log share over all
sites, so that this one model knows how common its classes are.

Two things follow where a site has hardly anything of a class. Its examples of other classes say
little about that class, because the shift alone makes it unlikely there: with the shares over all
sites every example teaches what it would teach in one place, if rounds are short. And label
smoothing, which asks for an equal small probability of each wrong class *after* the shift, asks for
large logits of such a class: leave it at 0.

Hierarchical: cross-entropy at the coarser levels of a taxonomy. A family's probability is the sum
over its species (Bertinetto et al. 2020, "Making Better Mistakes", section 3.1,
https://arxiv.org/abs/1912.09393, treats a taxonomy likewise), so a wrong species in the right
family costs less than one in a wrong family. No parameters, no coupling; one pass over the logits
per level. It makes mistakes milder, but seldom fewer.

Semantic: the target share of a wrong class grows with its similarity to the right one, a softmax
of the cosine between public attributes (soft labels as in Bertinetto et al. 2020, section 3.2, with
attributes instead of a tree). No parameters, no coupling. Attributes computed from private pictures
would be a release. Like label smoothing, it may help calibration and near misses more than top-1.

Part diversity: learned parts should look at different places. After Zheng et al. 2017 (MA-CNN,
section 3.2; see :mod:`fgvc_core.models.pooling`), with the cosine between maps instead of their
maximum, averaged over all pairs of a picture's maps: 0 if no two overlap, 1 if all are equal. It
couples no examples. Cost: K^2 H W. With a large weight the maps split the background among them;
with none they all converge to one place.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn import functional as F

from fgvc_core.components import LOSSES
from fgvc_core.errors import ConfigurationError
from fgvc_core.losses.base import Answers, ClassKnowledge, Loss
from fgvc_core.losses.settings import LossSettings


@LOSSES.register("hierarchy")
def _hierarchy(settings: LossSettings) -> Loss:
    return HierarchicalCrossEntropy()


@LOSSES.register("semantic")
def _semantic(settings: LossSettings) -> Loss:
    return SemanticCrossEntropy(settings.semantic_temperature)


@LOSSES.register("diversity")
def _diversity(settings: LossSettings) -> Loss:
    return PartDiversity()


Kind = Literal["weights", "logits"]


class BalancedCrossEntropy(Loss):
    """Smoothed cross-entropy, balanced by class counts.

    Args:
        kind: ``weights`` or ``logits``.
        smoothing: See :class:`SmoothedCrossEntropy`.
        beta: For ``weights``: 0 (no weights) to below 1 (nearly inverse counts).
        strength: For ``logits``: factor of the log share.
        public_counts_K: Public class counts; without them the site's own are used.
        prior: For ``logits``: how far the model takes classes to be as likely as over all sites.
        of_all_sites: For ``logits``: adjust by the shares over all sites where they are known.
    """

    def __init__(
        self,
        kind: Kind,
        smoothing: float,
        beta: float,
        strength: float,
        public_counts_K: torch.Tensor | None = None,
        prior: float = 0.0,
        of_all_sites: bool = False,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.smoothing = smoothing
        self.beta = beta
        self.strength = strength
        self.counts_privately = public_counts_K is None
        self.setting = f"loss.balance = '{kind}'"
        self.counts_K = public_counts_K
        self.prior = prior
        self.of_all_sites = of_all_sites
        self.shares_K: torch.Tensor | None = None

    def counted(self, counts_K: torch.Tensor, shares_K: torch.Tensor | None = None) -> Loss:
        """See :class:`Loss`; public counts take precedence.

        Without shares the counts are taken for those of all sites.
        """
        if not self.counts_privately:
            if self.counts_K is not None and len(self.counts_K) != len(counts_K):
                raise ConfigurationError(
                    f"loss.class_counts has {len(self.counts_K)} numbers for {len(counts_K)} "
                    "classes.",
                    remedy="Give one number a class, in the order of data.classes.",
                )
            return self
        bound = BalancedCrossEntropy(
            self.kind,
            self.smoothing,
            self.beta,
            self.strength,
            prior=self.prior,
            of_all_sites=self.of_all_sites,
        )
        bound.counts_K, bound.shares_K = counts_K, shares_K
        return bound

    def each(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Loss`; the mean weight over the counted examples is 1."""
        logits_NK = answers.logits_NK
        counts_K = self.counts_K
        if counts_K is None:
            raise TypeError("a balanced loss is counted before it is used")
        counts_K = counts_K.to(logits_NK.device, torch.float64)
        if self.kind == "logits":
            own_K = (counts_K + 1) / (counts_K + 1).sum()
            common_K = own_K if self.shares_K is None else self.shares_K.to(own_K)
            shift_K = self.strength * (common_K if self.of_all_sites else own_K).log()
            if self.prior:
                shift_K = shift_K - self.prior * common_K.log()
            logits_NK = logits_NK + shift_K.to(logits_NK.dtype)
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
    """float64 (K,): inverse effective numbers, scaled to a mean of 1 over the examples.

    A class without examples has weight 0.

    Args:
        counts_K: Class counts, with a total of at least one.
        beta: 0 to below 1.
    """
    counts_K = counts_K.double()
    effective_K = (1 - beta**counts_K) / (1 - beta)
    weights_K = torch.where(counts_K > 0, 1 / effective_K.clamp_min(1e-12), 0.0)
    return weights_K * counts_K.sum().clamp_min(1) / (weights_K * counts_K).sum().clamp_min(1e-12)


class HierarchicalCrossEntropy(Loss):
    """Mean of the cross-entropies at all levels above the class.

    Args:
        taxonomy: K tuples of names from coarse to fine, ending in the class.
    """

    def __init__(self, taxonomy: Sequence[Sequence[str]] = ()) -> None:
        super().__init__()
        self.levels = [_groups([chain[level] for chain in taxonomy]) for level in _above(taxonomy)]

    def informed(self, known: ClassKnowledge) -> Loss:
        """See :class:`Loss`."""
        if not _above(known.taxonomy):
            raise ConfigurationError(
                "loss.hierarchy > 0, but the data set has no taxonomy.",
                why="It scores the coarser levels that a taxonomy names.",
                remedy="Set loss.hierarchy = 0, or take a data set with one (fieldmarks, cars, "
                "aircraft).",
            )
        return HierarchicalCrossEntropy(known.taxonomy)

    def each(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Loss`."""
        if not self.levels:
            raise TypeError("a hierarchical loss is informed before it is used")
        log_NK = answers.logits_NK.log_softmax(dim=1)
        total_N = log_NK.new_zeros(len(log_NK))
        for groups_K in self.levels:
            groups_K = groups_K.to(log_NK.device)
            log_NG = group_log_probabilities(log_NK, groups_K)
            if labels_N.ndim == 2:
                share_NG = log_NG.new_zeros(log_NG.shape).index_add_(
                    1, groups_K, labels_N.to(log_NG.dtype)
                )
                total_N = total_N - (share_NG * log_NG).sum(dim=1)
            else:
                total_N = total_N - log_NG.gather(1, groups_K[labels_N, None]).squeeze(1)
        return total_N / len(self.levels)


def group_log_probabilities(log_NK: torch.Tensor, groups_K: torch.Tensor) -> torch.Tensor:
    """(N, G): log of the summed probability of each group.

    Args:
        log_NK: Log probabilities of the classes.
        groups_K: int64 (K,), each class's group, 0 to G - 1, none empty.
    """
    members_GK = torch.nn.functional.one_hot(groups_K).T.bool()
    spread_NGK = log_NK[:, None, :].masked_fill(~members_GK, -torch.inf)
    return spread_NGK.logsumexp(dim=2)


def _above(taxonomy: Sequence[Sequence[str]]) -> range:
    return range(len(taxonomy[0]) - 1) if taxonomy else range(0)


def _groups(names: Sequence[str]) -> torch.Tensor:
    number = {name: g for g, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names], dtype=torch.int64)


class SemanticCrossEntropy(Loss):
    """Cross-entropy with targets from class attributes.

    Args:
        temperature: Of the softmax over cosines; small values approach one-hot targets.
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
    """float32 (K, K): the targets of each class; rows sum to 1.

    Attributes are centered first, because those common to all classes distinguish none.
    """
    centred_KA = attributes_KA.double() - attributes_KA.double().mean(dim=0)
    unit_KA = F.normalize(centred_KA, dim=1)
    return (unit_KA @ unit_KA.T / temperature).softmax(dim=1).float()


class PartDiversity(Loss):
    """Mean cosine between the maps of a picture's parts."""

    def each(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Loss`.

        Raises:
            ConfigurationError: if the model has no part maps, or does not train them.
        """
        maps_NKHW = answers.part_maps_NKHW
        if maps_NKHW is None:
            raise ConfigurationError(
                "loss.diversity > 0, but there are no maps of parts that train.",
                why="It keeps learned parts apart.",
                remedy="Set model.pooling = 'parts' and model.train to all or a stage, or "
                "loss.diversity = 0.",
            )
        return overlap(maps_NKHW)


def overlap(maps_NKHW: torch.Tensor) -> torch.Tensor:
    """(N,), 0 to 1: mean cosine over the pairs of K non-negative maps; 0 for K = 1."""
    parts = maps_NKHW.shape[1]
    if parts < 2:
        return maps_NKHW.new_zeros(len(maps_NKHW)) + 0.0 * maps_NKHW.sum(dim=(1, 2, 3))
    unit_NKP = F.normalize(maps_NKHW.flatten(2), dim=2)
    # The sum over all ordered pairs, including self-pairs, is the square of the sum.
    together_N = unit_NKP.sum(dim=1).square().sum(dim=1)
    own_N = unit_NKP.square().sum(dim=(1, 2))
    return (together_N - own_N) / (parts * (parts - 1))
