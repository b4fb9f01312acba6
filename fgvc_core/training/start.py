"""Heads from class statistics: before round 1 in a federation, and on centralized data."""

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.errors import ConfigurationError, PeerError
from fgvc_core.models.class_statistics import (
    ClassStatistics,
    class_statistics,
    discriminant_scores,
    means_scores,
    pack_statistics,
    read_statistics,
    semantic_scores,
    statistics_shapes,
)
from fgvc_core.privacy.posterior import ClassMeans, linear_scores
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.training.examples import Examples
from fgvc_core.training.learner import Learner
from fgvc_core.training.private import projected_vectors
from fgvc_core.training.settings import TrainSettings

WEIGHT, BIAS = "head.weight", "head.bias"

Tensors = dict[str, NDArray[np.float32]]


@torch.inference_mode()
def site_statistics(learner: Learner, examples: Examples, batch_size: int) -> Tensors:
    """One site's contribution: statistics of its training pictures, not augmented.

    Raises:
        PeerError: if the recipe has no start.
    """
    settings = learner.settings
    if settings.start == "none":
        raise PeerError("The recipe has no train.start: statistics are not part of this run.")
    learner.model.eval()
    parts = [
        examples.features(learner.model, positions, None).cpu()
        for positions in torch.arange(len(examples)).split(batch_size)
    ]
    features_ND = (
        torch.cat(parts).float() if parts else torch.zeros(0, learner.model.feature_dim)
    ).numpy()
    found = class_statistics(
        features_ND, examples.labels_N.numpy(), learner.num_classes, wants_scatter(settings)
    )
    return pack_statistics(found)


def no_attributes() -> ConfigurationError:
    """Error for a start that needs class attributes when there are none."""
    return ConfigurationError(
        "train.start = 'semantic', but the coordinator's data set has no class attributes.",
        why="Classes are named by them.",
        remedy="Take a data set with attributes (fieldmarks, cub), or train.start = 'lda'.",
    )


def wants_scatter(settings: TrainSettings) -> bool:
    """Whether a start needs second-order statistics."""
    return settings.start in ("lda", "semantic")


def expected_statistics(tensors: Tensors, settings: TrainSettings) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a site's statistics, from the model's head."""
    num_classes, dim = tensors[WEIGHT].shape
    return statistics_shapes(num_classes, dim, wants_scatter(settings))


def started(
    tensors: Tensors,
    total: ClassStatistics,
    settings: TrainSettings,
    attributes_KA: NDArray[np.float32] | None = None,
) -> Tensors:
    """Replace the model's head by one computed from the statistics of all sites.

    Args:
        tensors: The model's tensors; only the head is replaced.
        total: Sum of all sites' statistics.
        settings: ``[train]``, with the kind of head.
        attributes_KA: Class attributes, for ``semantic``.

    Raises:
        ConfigurationError: for ``semantic`` without attributes.
    """
    if settings.start == "semantic":
        if attributes_KA is None:
            raise no_attributes()
        weight_KD, bias_K = semantic_scores(total, attributes_KA, settings.start_shrinkage)
    elif settings.start == "lda":
        weight_KD, bias_K = discriminant_scores(
            total, settings.start_shrinkage, settings.start_prior
        )
    else:
        weight_KD, bias_K = means_scores(total)
    scale = settings.start_scale
    head = {
        WEIGHT: (scale * weight_KD).astype(np.float32),
        BIAS: (scale * bias_K).astype(np.float32),
    }
    return {**tensors, **head}


def start_alone(
    learner: Learner,
    examples: Examples,
    batch_size: int,
    attributes_KA: NDArray[np.float32] | None = None,
) -> None:
    """Give a learner the start that a federation of one site with these pictures would have.

    Args:
        learner: Its head is changed in place; nothing is changed if the recipe has no start.
        examples: Training examples, at least one.
        batch_size: Pictures per batch.
        attributes_KA: Class attributes, for ``semantic``.

    Raises:
        ConfigurationError: for ``semantic`` without attributes.
    """
    if learner.settings.start == "none":
        return
    total = read_statistics(site_statistics(learner, examples, batch_size))
    learner.load(started(learner.tensors(), total, learner.settings, attributes_KA))


NEVER = -1e4
"""Bias of a class without pictures."""


def fit_class_means(learner: Learner, examples: Examples, privacy: PrivacySettings) -> None:
    """Set the learner's subspace head from exact class means, without sites and noise.

    This is the reference for a federation's private release of class sums: the same vectors,
    center and scores, from exact sums.

    Args:
        learner: Its head is changed in place.
        examples: Examples, at least one.
        privacy: Only ``within_spread`` and ``class_prior`` are used.

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
