"""The head of class means on pictures that lie in one place: no sites, no noise.

What a federation's private release of class sums is compared with: the same vectors,
the same centre, the same scores, from the exact sums.
"""

import numpy as np
import torch

from fgvc_core.privacy.posterior import ClassMeans, linear_scores
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.training.examples import Examples
from fgvc_core.training.learner import Learner
from fgvc_core.training.private import projected_vectors

NEVER = -1e4
"""Bias of a class of which there is no picture."""


def fit_class_means(learner: Learner, examples: Examples, privacy: PrivacySettings) -> None:
    """Give the learner's subspace head the exact class means.

    Args:
        learner: Its head is changed in place.
        examples: At least one.
        privacy: ``within_spread`` and ``class_prior`` are read, nothing else.

    Raises:
        PolicyRefusal: if the model has no subspace head on a frozen backbone.
    """
    centre_P = projected_vectors(learner, examples, centred=False).mean(axis=0)
    _load(learner, {"head.centre": centre_P})
    vectors_NP = projected_vectors(learner, examples, centred=True)
    counts_K = np.bincount(examples.labels_N.numpy(), minlength=learner.num_classes)
    sums_KP = np.zeros((learner.num_classes, vectors_NP.shape[1]))
    np.add.at(sums_KP, examples.labels_N.numpy(), vectors_NP)
    most_K1 = np.maximum(counts_K, 1)[:, None]
    found = ClassMeans(
        means_KP=sums_KP / most_K1,
        variances_KP=np.broadcast_to(
            privacy.within_spread / vectors_NP.shape[1] / most_K1, sums_KP.shape
        ),
        counts_SK=counts_K[None, :].astype(np.float64),
    )
    weights_KP, biases_K = linear_scores(
        found, privacy.within_spread, privacy.class_prior == "counts"
    )
    biases_K = np.where(counts_K > 0, biases_K, NEVER)
    _load(learner, {"head.weight": weights_KP, "head.bias": biases_K})


@torch.no_grad()
def _load(learner: Learner, values: dict[str, np.ndarray]) -> None:
    tensors = {name: array.astype(np.float32) for name, array in values.items()}
    learner.load({**learner.tensors(), **tensors})
