"""One loss from settings."""

import torch

from fgvc_core.errors import PolicyRefusal
from fgvc_core.losses.balanced import BalancedCrossEntropy
from fgvc_core.losses.base import Loss
from fgvc_core.losses.classification import SmoothedCrossEntropy
from fgvc_core.losses.diversity import PartDiversity
from fgvc_core.losses.hierarchy import HierarchicalCrossEntropy
from fgvc_core.losses.semantic import SemanticCrossEntropy
from fgvc_core.losses.settings import LossSettings
from fgvc_core.losses.weighted import WeightedSum


def build_loss(settings: LossSettings) -> Loss:
    """The loss that a recipe names: cross-entropy of a kind, and what is added to it."""
    terms = [(1.0, _classification(settings))]
    if settings.triplet or settings.proxy:
        # Imported here: the library brings scikit-learn, which nothing else needs.
        from fgvc_core.losses.metric import BatchHardTriplet, ProxyAnchor

        if settings.triplet:
            terms.append((settings.triplet, BatchHardTriplet(settings.triplet_margin)))
        if settings.proxy:
            proxy = ProxyAnchor(settings.proxy_margin, settings.proxy_alpha)
            terms.append((settings.proxy, proxy))
    if settings.hierarchy:
        terms.append((settings.hierarchy, HierarchicalCrossEntropy()))
    if settings.semantic:
        terms.append((settings.semantic, SemanticCrossEntropy(settings.semantic_temperature)))
    if settings.diversity:
        terms.append((settings.diversity, PartDiversity()))
    return terms[0][1] if len(terms) == 1 else WeightedSum(terms)


def refuse_unprotectable(loss: Loss) -> None:
    """Refuse a loss that differential privacy cannot bound.

    Raises:
        PolicyRefusal: if it couples examples, or is made from a site's own counts.
    """
    if loss.couples_examples:
        raise PolicyRefusal(
            "loss.triplet and loss.proxy are refused under [privacy].",
            why="They couple the examples of a batch: no single one's part can be bounded.",
            remedy="Set both to 0.",
        )
    if loss.counts_privately:
        raise PolicyRefusal(
            "loss.balance with a site's own counts is refused under [privacy].",
            why="Class weights computed from private counts are a release of their own.",
            remedy="Give public numbers in loss.class_counts, or set loss.balance = 'none'.",
        )


def _classification(settings: LossSettings) -> Loss:
    if settings.balance == "none":
        return SmoothedCrossEntropy(settings.label_smoothing)
    public_K = torch.tensor(settings.class_counts) if settings.class_counts else None
    return BalancedCrossEntropy(
        settings.balance,
        settings.label_smoothing,
        settings.balance_beta,
        settings.balance_strength,
        public_K,
    )
