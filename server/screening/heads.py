"""Plausibility of a site's answers about heads: gradients, and counts on folds.

A site's class statistics, screened before, say what its answers can be. The gradient of a head is a
sum of ``(share - own) x`` over its pictures: over the classes it adds up to zero; with the biases'
gradient it says how often the head answers each class, which is neither negative nor more than all
pictures; and by Cauchy and Schwarz the sum of ``share x`` over n pictures, whose shares come to m,
has a norm of at most the root of m times the sum of squared norms. Counts on a fold are exactly
those of the site's own statistics. Gradients within these bounds may still be false: a site counts
for at most ``federation.max_weight_share`` of all pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgvc_core.models.class_statistics import ClassStatistics, Floats
from fgvc_core.models.head_stack import CORRECT, PREDICTED, SUPPORT, HeadStack
from fgvc_core.models.regression import Summed

_ROUNDING = 1e-3
"""Tolerated relative difference of float32 sums over many pictures."""


@dataclass(frozen=True)
class SiteFolds:
    """What is known of a site's folds.

    Attributes:
        counts_FK: float64 (F, K), pictures of each class; one fold where the recipe has none.
        squares_F: float64 (F,), sum of the vectors' squared norms; 0 without a scatter.
        factor: Weight of each picture, 0 to 1.
    """

    counts_FK: Floats
    squares_F: Floats
    factor: float

    @classmethod
    def of(cls, parts: Sequence[ClassStatistics], factor: float) -> "SiteFolds":
        """From a site's statistics of each fold."""
        squares = [
            0.0 if part.scatter_DD is None else float(np.trace(part.scatter_DD)) for part in parts
        ]
        return cls(np.stack([part.counts_K for part in parts]), np.array(squares), factor)

    def learned(self, fold: int) -> tuple[Floats, float]:
        """Counts (K,) and squared norms of the pictures outside of a fold; all for ``ALL``."""
        others_F = np.arange(len(self.squares_F)) != fold
        return self.counts_FK[others_F].sum(axis=0), float(self.squares_F[others_F].sum())


def impossible_gradient(
    found: Summed, head: tuple[NDArray[np.floating], NDArray[np.floating]], known: SiteFolds,
    fold: int,
) -> str | None:  # fmt: skip
    """Why a site's sums of one head cannot be; None if they can.

    Args:
        found: Loss and gradients, finite.
        head: Weights (K, D) and biases (K,).
        known: Of the site's folds.
        fold: The one that the head does not learn from.
    """
    counts_K, squares = known.learned(fold)
    examples = float(counts_K.sum())
    shares_K = found.bias_K + counts_K
    slack = _ROUNDING * examples + 1e-6
    if (shares_K < -slack).any() or abs(shares_K.sum() - examples) > slack:
        return f"The gradient of the biases is that of no head on {examples:,.0f} pictures."
    root = float(np.sqrt(squares))
    longest_K = np.sqrt(np.maximum(shares_K, 0.0) + slack) + np.sqrt(counts_K)
    lengths_K = np.linalg.norm(found.weight_KD, axis=1)
    over_K = lengths_K - (1 + _ROUNDING) * root * longest_K
    worst = int(np.argmax(over_K))
    if over_K[worst] > 1e-6:
        return (
            f"The gradient of class {worst} has length {lengths_K[worst]:.4g}, above "
            f"{root * longest_K[worst]:.4g}: the most that the site's vectors can come to."
        )
    together = float(np.linalg.norm(found.weight_KD.sum(axis=0)))
    if together > _ROUNDING * (float(lengths_K.sum()) + root * float(np.sqrt(examples))) + 1e-6:
        return f"The gradients of the classes come to {together:.4g}, and not to zero."
    weight_KD, bias_K = (array.astype(np.float64) for array in head)
    widest = float(np.linalg.norm(weight_KD, axis=1).max()) * root * float(np.sqrt(examples))
    most = examples * (np.log(len(bias_K)) + float(np.ptp(bias_K))) + 2 * widest
    if not -slack <= found.loss <= (1 + _ROUNDING) * most + slack:
        return f"The loss of {found.loss:.4g} is outside of 0 to {most:.4g}."
    return None


def impossible_counts(counts_MV3K: Floats, heads: HeadStack, known: SiteFolds) -> str | None:
    """Why a site's counts of some heads cannot be; None if they can."""
    if (counts_MV3K < 0).any() or (counts_MV3K != np.rint(counts_MV3K)).any():
        return "The counts on folds are no counts."
    own_MVK = known.counts_FK[heads.fold_M][:, None]
    if (counts_MV3K[:, :, SUPPORT] != own_MVK).any():
        return "The pictures of a fold are not those of the site's own class statistics."
    answered_MV = counts_MV3K[:, :, PREDICTED].sum(axis=-1)
    if (answered_MV != own_MVK.sum(axis=-1)).any():
        return "The answers on a fold are more or fewer than its pictures."
    least_MVK = np.minimum(counts_MV3K[:, :, SUPPORT], counts_MV3K[:, :, PREDICTED])
    if (counts_MV3K[:, :, CORRECT] > least_MVK).any():
        return "More answers are right than were given, or than there are pictures."
    return None
