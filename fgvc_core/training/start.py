"""A head before round 1: what a site adds to it, and what the coordinator makes of the sums."""

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
    semantic_scores,
    statistics_shapes,
)
from fgvc_core.training.examples import Examples
from fgvc_core.training.learner import Learner
from fgvc_core.training.settings import TrainSettings

WEIGHT, BIAS = "head.weight", "head.bias"

Tensors = dict[str, NDArray[np.float32]]


@torch.inference_mode()
def site_statistics(learner: Learner, examples: Examples, batch_size: int) -> Tensors:
    """What one site adds: statistics of its training pictures as they are, unaugmented.

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
    """The error for a start that needs class attributes where there are none."""
    return ConfigurationError(
        "train.start = 'semantic', but the coordinator's data set has no class attributes.",
        why="Classes are named by them.",
        remedy="Take a data set with attributes (fieldmarks, cub), or train.start = 'lda'.",
    )


def wants_scatter(settings: TrainSettings) -> bool:
    """Whether a start needs second-order statistics."""
    return settings.start in ("lda", "semantic")


def expected_statistics(tensors: Tensors, settings: TrainSettings) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a site sends, from the model's own head."""
    num_classes, dim = tensors[WEIGHT].shape
    return statistics_shapes(num_classes, dim, wants_scatter(settings))


def started(
    tensors: Tensors,
    total: ClassStatistics,
    settings: TrainSettings,
    attributes_KA: NDArray[np.float32] | None = None,
) -> Tensors:
    """The model with the head that all sites' statistics give.

    Args:
        tensors: The model as it is; only its head is replaced.
        total: Of all sites together.
        settings: Which head.
        attributes_KA: Of the classes, for ``semantic``.

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
