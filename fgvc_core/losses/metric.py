"""Metric-learning losses on distances between vectors, from pytorch-metric-learning.

Batch-hard triplets: Hermans, Beyer, Leibe 2017, "In Defense of the Triplet Loss for Person
Re-Identification", section 2, https://arxiv.org/abs/1703.07737. Proxy anchor: Kim et al. 2020,
https://arxiv.org/abs/2003.13991; here the proxies are the head's own class vectors, so that
nothing extra travels. Both couple the examples of a batch, so differential privacy refuses them.
Cost: N x N (triplets) or N x K distances. On top of a well-tuned cross-entropy the gain is often
within the noise, and at a site with few examples per class most batches have no positive pair.
"""

from typing import Any

import torch
from pytorch_metric_learning import distances, losses, miners

from fgvc_core.components import LOSSES
from fgvc_core.errors import ConfigurationError
from fgvc_core.losses.base import Answers, Loss
from fgvc_core.losses.settings import LossSettings


@LOSSES.register("triplet")
def _triplet(settings: LossSettings) -> Loss:
    return BatchHardTriplet(settings.triplet_margin)


@LOSSES.register("proxy")
def _proxy(settings: LossSettings) -> Loss:
    return ProxyAnchor(settings.proxy_margin, settings.proxy_alpha)


class BatchHardTriplet(Loss):
    """Triplet loss with the hardest positive and the hardest negative of each anchor.

    Args:
        margin: Margin of the Euclidean distance between unit vectors (0 to 2).
    """

    couples_examples = True

    def __init__(self, margin: float) -> None:
        super().__init__()
        self._miner = miners.BatchHardMiner(distance=distances.LpDistance())
        self._loss = losses.TripletMarginLoss(margin=margin, distance=distances.LpDistance())

    def of(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Loss`; 0 if no anchor has both a positive and a negative."""
        features_ND = _vectors(answers)
        if len(features_ND) < 2:
            return features_ND.sum() * 0.0
        hard_N = _hard(labels_N)
        return self._loss(features_ND, hard_N, self._miner(features_ND, hard_N))


class ProxyAnchor(Loss):
    """Each class vector of the head attracts its examples and repels all others.

    Args:
        margin: Margin of the cosine, -1 to 1.
        alpha: Inverse temperature.
    """

    couples_examples = True

    def __init__(self, margin: float, alpha: float) -> None:
        super().__init__()
        self.margin = margin
        self.alpha = alpha

    def of(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Loss`.

        Raises:
            ConfigurationError: if the head has no class vectors.
        """
        proxies_KD = answers.class_vectors_KD
        if proxies_KD is None:
            raise ConfigurationError(
                "loss.proxy needs a head with a vector for each class.",
                remedy="Set model.head to linear or cosine, or loss.proxy = 0.",
            )
        features_ND = _vectors(answers)
        if not len(features_ND):
            return features_ND.sum() * 0.0
        loss = _Proxies(proxies_KD, margin=self.margin, alpha=self.alpha)
        return loss(features_ND, _hard(labels_N))


class _Proxies(losses.ProxyAnchorLoss):  # type: ignore[misc]
    """The library's loss with the head's vectors as proxies."""

    proxies: torch.Tensor

    def __init__(self, proxies_KD: torch.Tensor, **arguments: Any) -> None:
        super().__init__(len(proxies_KD), 1, **arguments)
        # A parameter here would detach the vectors from the head they belong to.
        del self.proxies
        self.proxies = proxies_KD

    def cast_types(self, dtype: torch.dtype, device: torch.device) -> None:
        """Do nothing: the head's vectors already have the device and dtype of the features."""


def _vectors(answers: Answers) -> torch.Tensor:
    if answers.features_ND is None:
        raise TypeError("a metric loss needs the vectors before the head")
    return answers.features_ND


def _hard(labels_N: torch.Tensor) -> torch.Tensor:
    """Labels; for mixed pictures the class with the largest share."""
    return labels_N if labels_N.ndim == 1 else labels_N.argmax(dim=1)
