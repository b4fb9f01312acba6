"""Closed-form classifiers from class statistics that add up over sites.

Counts, sums and the scatter of feature vectors are sums over pictures: added up over sites, they
equal those of one site with all pictures, up to rounding. A head that is a function of them needs
one message per site and no training rounds, and is unaffected by heterogeneity (FedNCM, Legate et
al. 2023, https://arxiv.org/abs/2310.05561; FedCOF, https://arxiv.org/abs/2412.14326).

The sums are not anonymous: for a class with one picture at a site, the sum is that picture's
vector, and the scatter of few pictures spans theirs. Under differential privacy use
``privacy.method = 'class-sums'`` instead.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import PeerError

Floats = NDArray[np.float64]

COUNTS, SUMS, SCATTER = "statistics.counts", "statistics.sums", "statistics.scatter"
"""Names of the tensors on the wire."""

_LEAST = 1e-12
"""Lower bound for variances; prevents division by zero for equal vectors."""

_ROUNDING = 1e-3
"""Tolerated relative difference of float32 sums over many pictures."""


_LOST = 1e-5
"""Tolerated float32 rounding in one direction, as a share of all variance; actual: about 1e-7."""


@dataclass(frozen=True)
class ClassStatistics:
    """Sums over the pictures of one or more sites.

    Attributes:
        counts_K: float64 (K,), number of pictures per class.
        sums_KD: float64 (K, D), sum of each class's vectors.
        scatter_DD: float64 (D, D), sum of ``x x^T`` over all pictures; None if only means are
            needed.
    """

    counts_K: Floats
    sums_KD: Floats
    scatter_DD: Floats | None

    def plus(self, other: "ClassStatistics") -> "ClassStatistics":
        """Sum of both statistics."""
        scatter_DD = None
        if self.scatter_DD is not None and other.scatter_DD is not None:
            scatter_DD = self.scatter_DD + other.scatter_DD
        return ClassStatistics(
            self.counts_K + other.counts_K, self.sums_KD + other.sums_KD, scatter_DD
        )

    def times(self, factor: float) -> "ClassStatistics":
        """Statistics with every vector weighted by ``factor``."""
        scatter_DD = None if self.scatter_DD is None else factor * self.scatter_DD
        return ClassStatistics(factor * self.counts_K, factor * self.sums_KD, scatter_DD)

    @property
    def means_KD(self) -> Floats:
        """float64 (K, D); a class without pictures has the overall mean."""
        held_K1 = self.counts_K[:, None] > 0
        overall_D = self.sums_KD.sum(axis=0) / max(float(self.counts_K.sum()), 1.0)
        own_KD = self.sums_KD / np.maximum(self.counts_K[:, None], 1.0)
        found: Floats = np.where(held_K1, own_KD, overall_D)
        return found

    def within_DD(self) -> Floats:
        """Pooled within-class covariance, float64 (D, D).

        Raises:
            ValueError: if there is no scatter.
        """
        if self.scatter_DD is None:
            raise ValueError("a covariance needs the scatter")
        means_KD = self.means_KD
        between_DD = (means_KD * self.counts_K[:, None]).T @ means_KD
        freedom = float(self.counts_K.sum()) - float((self.counts_K > 0).sum())
        found: Floats = (self.scatter_DD - between_DD) / max(freedom, 1.0)
        return found


def class_statistics(
    features_ND: NDArray[np.float32], labels_N: NDArray[np.int64], num_classes: int, scatter: bool
) -> ClassStatistics:
    """Compute the statistics of one site's pictures.

    Args:
        features_ND: N vectors.
        labels_N: 0 to K - 1.
        num_classes: K.
        scatter: Whether to compute second-order statistics (D * D values).
    """
    values_ND = features_ND.astype(np.float64)
    sums_KD = np.zeros((num_classes, values_ND.shape[1]))
    np.add.at(sums_KD, labels_N, values_ND)
    return ClassStatistics(
        np.bincount(labels_N, minlength=num_classes).astype(np.float64),
        sums_KD,
        values_ND.T @ values_ND if scatter else None,
    )


def pack_statistics(found: ClassStatistics) -> dict[str, NDArray[np.float32]]:
    """Convert to named tensors for the wire; of the symmetric scatter only the upper triangle."""
    packed = {
        COUNTS: found.counts_K.astype(np.float32),
        SUMS: found.sums_KD.astype(np.float32),
    }
    if found.scatter_DD is not None:
        upper = np.triu_indices(len(found.scatter_DD))
        packed[SCATTER] = found.scatter_DD[upper].astype(np.float32)
    return packed


def pack_folds(folds: list[ClassStatistics]) -> dict[str, NDArray[np.float32]]:
    """Named tensors for the wire of a site's folds; the first axis is the fold."""
    packed = [pack_statistics(fold) for fold in folds]
    return {name: np.stack([fold[name] for fold in packed]) for name in packed[0]}


def statistics_shapes(
    num_classes: int, dim: int, scatter: bool, folds: int = 0
) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of :func:`pack_statistics`, or of so many folds, by name."""
    shapes: dict[str, tuple[int, ...]] = {COUNTS: (num_classes,), SUMS: (num_classes, dim)}
    if scatter:
        shapes[SCATTER] = (dim * (dim + 1) // 2,)
    return {name: (folds, *shape) if folds else shape for name, shape in shapes.items()}


def split_folds(
    tensors: dict[str, NDArray[np.float32]], folds: int
) -> list[dict[str, NDArray[np.float32]]]:
    """Tensors of :func:`pack_folds` as those of each fold; without folds, as those of one."""
    if not folds:
        return [tensors]
    return [{name: array[f] for name, array in tensors.items()} for f in range(folds)]


def added(parts: Iterable[ClassStatistics]) -> ClassStatistics:
    """Sum of at least one."""
    return reduce(ClassStatistics.plus, parts)


def unpack_statistics(tensors: dict[str, NDArray[np.float32]]) -> ClassStatistics:
    """Validate a stranger's statistics, whose names and shapes were checked before.

    Raises:
        PeerError: if the values are impossible: negative counts, a sum for a class without
            pictures, a scatter without any picture, or a scatter smaller than that of the class
            means in some direction.
    """
    found = read_statistics(tensors)
    counts_K, sums_KD, scatter_DD = found.counts_K, found.sums_KD, found.scatter_DD
    if (counts_K < 0).any() or (counts_K != np.rint(counts_K)).any():
        raise PeerError("The counts of the classes are no counts.")
    if sums_KD[counts_K == 0].any():
        raise PeerError("A class without a picture has a sum that is not zero.")
    if scatter_DD is None:
        return found
    if not counts_K.any() and scatter_DD.any():
        # Without pictures the site is not screened against others; nothing else bounds it.
        raise PeerError("There is no picture, and a scatter that is not zero.")
    # The class means' share of the diagonal cannot exceed the whole.
    least_D = (sums_KD**2 / np.maximum(counts_K, 1.0)[:, None]).sum(axis=0)
    if (least_D > np.diag(scatter_DD) * (1 + _ROUNDING) + _LEAST).any():
        raise PeerError("The sums and the scatter are not of the same vectors.")
    if not _can_be_scatter(counts_K, sums_KD, scatter_DD):
        raise PeerError("The scatter is that of no vectors with these sums.")
    return found


def read_statistics(tensors: dict[str, NDArray[np.float32]]) -> ClassStatistics:
    """Convert tensors of :func:`pack_statistics` back; they must have been checked."""
    counts_K = tensors[COUNTS].astype(np.float64)
    sums_KD = tensors[SUMS].astype(np.float64)
    if SCATTER not in tensors:
        return ClassStatistics(counts_K, sums_KD, None)
    dim = sums_KD.shape[1]
    scatter_DD = np.zeros((dim, dim))
    scatter_DD[np.triu_indices(dim)] = tensors[SCATTER]
    scatter_DD += np.triu(scatter_DD, 1).T
    return ClassStatistics(counts_K, sums_KD, scatter_DD)


def _can_be_scatter(counts_K: Floats, sums_KD: Floats, scatter_DD: Floats) -> bool:
    """Whether the scatter minus that of the class means has no negative eigenvalue.

    Checking only the diagonal would leave all other values unbounded. Costs one factorization
    of a D x D matrix.
    """
    within_DD = sums_KD.T @ (sums_KD / np.maximum(counts_K, 1.0)[:, None])
    np.subtract(scatter_DD, within_DD, out=within_DD)
    # Float32 rounding can make a variance of zero slightly negative.
    within_DD[np.diag_indices_from(within_DD)] += _LOST * float(np.trace(scatter_DD)) + _LEAST
    try:
        np.linalg.cholesky(within_DD)
    except np.linalg.LinAlgError:
        return False
    return True


def means_scores(found: ClassStatistics) -> tuple[Floats, Floats]:
    """Weights (K, D) and biases (K,) of a nearest-class-mean classifier.

    A shift common to all classes keeps the scores small.
    """
    means_KD = found.means_KD
    centre_D = means_KD.mean(axis=0)
    weights_KD = means_KD - centre_D
    return weights_KD, 0.5 * (centre_D @ centre_D - (means_KD**2).sum(axis=1))


def discriminant_scores(
    found: ClassStatistics, shrinkage: float, prior: float
) -> tuple[Floats, Floats]:
    """Weights (K, D) and biases (K,) of linear discriminant analysis.

    One covariance for all classes, shrunk toward a multiple of the identity (Friedman 1989,
    "Regularized Discriminant Analysis", equation 18), because with about as many pictures as
    dimensions the covariance is singular or nearly so. Costs one factorization of a D x D
    matrix.

    Args:
        found: Statistics with a scatter.
        shrinkage: Share of the identity, above 0 to 1; 1 gives the nearest class mean.
        prior: Weight of the class frequencies in the prior, 0 (uniform, for macro-F1) to 1
            (as counted, for top-1).
    """
    shrunken_DD = _shrunken(found.within_DD(), shrinkage)
    means_KD = found.means_KD
    centre_D = means_KD.mean(axis=0)
    offset_KD = means_KD - centre_D
    weights_KD = np.linalg.solve(shrunken_DD, offset_KD.T).T
    biases_K = -0.5 * (weights_KD * (means_KD + centre_D)).sum(axis=1)
    return weights_KD, biases_K + prior * log_shares(found)


def log_shares(found: ClassStatistics) -> Floats:
    """Log of each class's share of the pictures, float64 (K,).

    Add-one smoothing: a class without pictures is rare, not impossible.
    """
    shares_K: Floats = np.log((found.counts_K + 1) / (found.counts_K + 1).sum())
    return shares_K


def semantic_scores(
    found: ClassStatistics, attributes_KA: NDArray[np.floating], shrinkage: float
) -> tuple[Floats, Floats]:
    """Weights (K, D) and biases (K,) of a zero-shot classifier from class attributes.

    A bilinear map between vectors and attributes, least squares with two ridge terms (ESZSL:
    Romera-Paredes and Torr 2015, "An embarrassingly simple approach to zero-shot learning",
    section 3.1, http://proceedings.mlr.press/v37/romera-paredes15.html). It needs only class sums
    and scatter, so it federates exactly. Predictions are biased toward seen classes: read the
    harmonic mean, not the accuracy on unseen classes alone.

    Args:
        found: Statistics with a scatter; classes without pictures are unseen.
        attributes_KA: Public attributes of all classes, in 0 to 1.
        shrinkage: Share of the identity on either side, above 0 to 1.
    """
    seen_K = found.counts_K > 0
    count = max(float(found.counts_K.sum()), 1.0)
    mean_D = found.sums_KD.sum(axis=0) / count
    assert found.scatter_DD is not None
    covariance_DD = found.scatter_DD / count - np.outer(mean_D, mean_D)
    sums_KD = found.sums_KD - found.counts_K[:, None] * mean_D
    described_KA = attributes_KA - attributes_KA[seen_K].mean(axis=0)
    lengths_K1 = np.linalg.norm(described_KA, axis=1, keepdims=True)
    described_KA = described_KA / np.maximum(lengths_K1, _LEAST)
    alike_AA = described_KA[seen_K].T @ described_KA[seen_K] / seen_K.sum()
    # Targets are -1 and 1; the part common to all classes vanishes with the mean.
    paired_DA = 2 * (sums_KD[seen_K].T @ described_KA[seen_K]) / count
    left_DA = np.linalg.solve(_shrunken(covariance_DD, shrinkage), paired_DA)
    map_DA = np.linalg.solve(_shrunken(alike_AA, shrinkage), left_DA.T).T
    weights_KD = described_KA @ map_DA.T
    return weights_KD, -weights_KD @ mean_D


def _shrunken(matrix_DD: Floats, shrinkage: float) -> Floats:
    """Covariance blended with the identity times its mean variance."""
    dim = len(matrix_DD)
    scale = max(float(np.trace(matrix_DD)) / dim, _LEAST)
    found: Floats = (1 - shrinkage) * matrix_DD + shrinkage * scale * np.eye(dim)
    return found
