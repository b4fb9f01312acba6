"""The head that follows from noisy class sums: of each site, or of one sum over all of them."""

import numpy as np
from numpy.typing import NDArray

from fgvc_core.privacy.planning import plan_for
from fgvc_core.privacy.posterior import infer_means, linear_scores
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.stages import Stage
from fgvc_core.recipe import Recipe
from fieldmark.server.strategies import Tensors


def noise_of(recipe: Recipe, stage: Stage) -> float:
    """Noise multiplier of a stage in a recipe's plan; of a masked sum, of all its sites together.

    Args:
        recipe: Has ``[privacy]``.
        stage: Has a purpose that is in the plan.
    """
    privacy = recipe.privacy
    assert privacy is not None
    plan = plan_for(privacy, recipe.federation.rounds, recipe.sharers)
    return next(event.noise_multiplier for event in plan if event.purpose == stage.privacy)


def head_of(
    privacy: PrivacySettings,
    sums_SKQ: NDArray[np.float64],
    deviation: float,
    units_S: NDArray[np.float64],
) -> Tensors:
    """Weights (K, P) and biases (K,) of the head.

    Args:
        privacy: ``[privacy]`` with ``method = 'class-sums'``.
        sums_SKQ: Noisy class sums, the last column the counts times ``count_coordinate``.
        deviation: Standard deviation of the noise on each value.
        units_S: Units behind each of them.
    """
    count = privacy.count_coordinate
    means = infer_means(
        sums_SKQ[:, :, :-1],
        sums_SKQ[:, :, -1] / count,
        deviation,
        deviation / count,
        privacy.within_spread,
        units_S,
    )
    by_counts = privacy.class_prior == "counts"
    weights_KP, biases_K = linear_scores(means, privacy.within_spread, by_counts)
    return {
        "head.weight": weights_KP.astype(np.float32),
        "head.bias": biases_K.astype(np.float32),
    }
