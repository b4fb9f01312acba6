"""Heads from class statistics: before round 1 in a federation, and on centralized data."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.data.table import fold_numbers
from fgvc_core.errors import ConfigurationError, PeerError
from fgvc_core.models.class_statistics import (
    ClassStatistics,
    added,
    class_statistics,
    discriminant_scores,
    means_scores,
    pack_folds,
    pack_statistics,
    read_statistics,
    semantic_scores,
    statistics_shapes,
)
from fgvc_core.models.regression import NEVER
from fgvc_core.privacy.posterior import ClassMeans, linear_scores
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.privacy.whitening import first_mean, first_tensors, scatter_weight
from fgvc_core.training.examples import Examples
from fgvc_core.training.head_search import Found, Pooled, Sites, best_head, regression_head
from fgvc_core.training.learner import Learner
from fgvc_core.training.private import projected_vectors
from fgvc_core.training.settings import TrainSettings

WEIGHT, BIAS = "head.weight", "head.bias"

Tensors = dict[str, NDArray[np.float32]]


@torch.inference_mode()
def vectors(learner: Learner, examples: Examples, batch_size: int) -> NDArray[np.float32]:
    """float32 (N, D): the vectors before the head, not augmented."""
    learner.model.eval()
    parts = [
        examples.features(learner.model, positions, None).cpu()
        for positions in torch.arange(len(examples)).split(batch_size)
    ]
    found: NDArray[np.float32] = (
        torch.cat(parts).float() if parts else torch.zeros(0, learner.model.feature_dim)
    ).numpy()
    return found


def site_statistics(
    learner: Learner, examples: Examples, batch_size: int, fold_N: NDArray[np.int64] | None = None
) -> Tensors:
    """One site's contribution: statistics of its training pictures.

    Args:
        learner: With the received model.
        examples: The site's training examples.
        batch_size: Pictures at once.
        fold_N: The fold of each, for ``auto``.

    Raises:
        PeerError: if the recipe has no start.
    """
    settings = learner.settings
    if settings.start == "none":
        raise PeerError("The recipe has no train.start: statistics are not part of this run.")
    features_ND = vectors(learner, examples, batch_size)
    labels_N, classes = examples.labels_N.numpy(), learner.num_classes
    scatter = wants_scatter(settings)
    if settings.start != "auto":
        return pack_statistics(class_statistics(features_ND, labels_N, classes, scatter))
    assert fold_N is not None
    held = [fold_N == f for f in range(settings.start_folds)]
    return pack_folds(
        [class_statistics(features_ND[at_N], labels_N[at_N], classes, scatter) for at_N in held]
    )


def no_attributes() -> ConfigurationError:
    """Error for a start that needs class attributes when there are none."""
    return ConfigurationError(
        "train.start = 'semantic', but the coordinator's data set has no class attributes.",
        why="Classes are named by them.",
        remedy="Take a data set with attributes (fieldmarks, cub), or train.start = 'lda'.",
    )


def wants_scatter(settings: TrainSettings) -> bool:
    """Whether a start needs second-order statistics."""
    return settings.start not in ("none", "means")


def folds_of(settings: TrainSettings) -> int:
    """Number of folds that statistics are sent of; 0: of all pictures together."""
    return settings.start_folds if settings.start == "auto" else 0


def expected_statistics(tensors: Tensors, settings: TrainSettings) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a site's statistics, from the model's head."""
    num_classes, dim = tensors[WEIGHT].shape
    return statistics_shapes(num_classes, dim, wants_scatter(settings), folds_of(settings))


def started(
    tensors: Tensors,
    total: ClassStatistics,
    settings: TrainSettings,
    attributes_KA: NDArray[np.float32] | None = None,
) -> Tensors:
    """Replace the model's head by one computed from the statistics of all sites alone.

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
    return with_head(tensors, (weight_KD, bias_K), settings)


def with_head(
    tensors: Tensors,
    head: tuple[NDArray[np.floating], NDArray[np.floating]],
    settings: TrainSettings,
) -> Tensors:
    """The model's tensors with another head, its scores multiplied by ``train.start_scale``."""
    scale = settings.start_scale
    weight_KD, bias_K = head
    return {
        **tensors,
        WEIGHT: (scale * weight_KD).astype(np.float32),
        BIAS: (scale * bias_K).astype(np.float32),
    }


def pooled_start(
    learner: Learner,
    examples: Examples,
    subjects: Sequence[str],
    batch_size: int,
    attributes_KA: NDArray[np.float32] | None = None,
) -> Found | None:
    """Set the learner's head as ``train.start`` does, from pictures that lie in one place.

    This is the reference for a federation's start: the same statistics, gradients and folds, of one
    site.

    Args:
        learner: Its head is changed in place.
        examples: Training examples, at least one.
        subjects: Their subjects, which folds keep whole.
        batch_size: Pictures at once.
        attributes_KA: Class attributes, for ``semantic``.

    Returns:
        What the search for a head has found; None for a start without a search.
    """
    settings = learner.settings
    if settings.start == "none":
        return None
    features_ND, labels_N = vectors(learner, examples, batch_size), examples.labels_N.numpy()
    folds = folds_of(settings)
    fold_N = np.zeros(len(labels_N), np.int64)
    if folds:
        fold_N = fold_numbers(subjects, labels_N, folds, f"seed {learner.seed}".encode())
    pooled = Pooled(features_ND, labels_N, fold_N)
    # Packed as a site sends them: the same rounding gives the same head to the bit.
    parts = [
        read_statistics(pack_statistics(part))
        for part in pooled.statistics(learner.num_classes, max(folds, 1))
    ]
    found = searched(parts, settings, pooled)
    if found is None:
        tensors = started(learner.tensors(), added(parts), settings, attributes_KA)
    else:
        tensors = with_head(learner.tensors(), found.head, settings)
    learner.load(tensors)
    return found


def searched(
    parts: Sequence[ClassStatistics], settings: TrainSettings, sites: Sites
) -> Found | None:
    """What the search of ``train.start`` finds; None for a start from statistics alone.

    Args:
        parts: Statistics of each fold over all sites, or one of all pictures.
        settings: ``[train]``.
        sites: The pictures.
    """
    if settings.start == "regression":
        return regression_head(added(parts), settings, sites)
    if settings.start == "auto":
        return best_head(parts, settings, sites)
    return None


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
    weight = scatter_weight(privacy)
    plain_NP = projected_vectors(learner, examples, centred=False)
    first_Q = first_mean(plain_NP, weight)
    _load(learner, {**first_tensors(first_Q, plain_NP.shape[1], weight, 0.0)})
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
