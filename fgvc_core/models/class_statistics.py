"""Classifiers in closed form from class statistics that add up over sites.

Counts, sums and the scatter of feature vectors are sums over pictures: what several sites
add up to is what one site with all pictures would have had, to the last digit that floats
keep. So a head that is a function of them needs one message from each site and no round of
training, and heterogeneity does not touch it (FedNCM, Legate et al. 2023,
https://arxiv.org/abs/2310.05561; FedCOF, https://arxiv.org/abs/2412.14326).

A warning: these sums are not anonymous. The sum of a class of which a site holds one picture
is that picture's vector, and a scatter of few pictures spans theirs. Under differential
privacy use ``privacy.method = 'class-sums'`` instead.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import PeerError

Floats = NDArray[np.float64]

COUNTS, SUMS, SCATTER = "statistics.counts", "statistics.sums", "statistics.scatter"
"""Names under which they travel."""

_LEAST = 1e-12
"""Variance that is taken at least, so that equal vectors do not divide by zero."""

_ROUNDING = 1e-3
"""Relative differences that float32 sums over many pictures may have."""


_LOST = 1e-5
"""Share of all variance that float32 values may lose in one direction; they lose about 1e-7."""


@dataclass(frozen=True)
class ClassStatistics:
    """Sums over the pictures of one site or of several.

    Attributes:
        counts_K: float64 (K,), pictures of each class.
        sums_KD: float64 (K, D), the sum of each class's vectors.
        scatter_DD: float64 (D, D), the sum over all pictures of ``x x^T``; None where only
            means are wanted.
    """

    counts_K: Floats
    sums_KD: Floats
    scatter_DD: Floats | None

    def plus(self, other: "ClassStatistics") -> "ClassStatistics":
        """Those of both together."""
        scatter_DD = None
        if self.scatter_DD is not None and other.scatter_DD is not None:
            scatter_DD = self.scatter_DD + other.scatter_DD
        return ClassStatistics(
            self.counts_K + other.counts_K, self.sums_KD + other.sums_KD, scatter_DD
        )

    def times(self, factor: float) -> "ClassStatistics":
        """The same vectors, each counting so many times."""
        scatter_DD = None if self.scatter_DD is None else factor * self.scatter_DD
        return ClassStatistics(factor * self.counts_K, factor * self.sums_KD, scatter_DD)

    @property
    def means_KD(self) -> Floats:
        """float64 (K, D); a class without a picture has the mean of all."""
        held_K1 = self.counts_K[:, None] > 0
        overall_D = self.sums_KD.sum(axis=0) / max(float(self.counts_K.sum()), 1.0)
        own_KD = self.sums_KD / np.maximum(self.counts_K[:, None], 1.0)
        found: Floats = np.where(held_K1, own_KD, overall_D)
        return found

    def within_DD(self) -> Floats:
        """The pooled covariance within the classes, float64 (D, D).

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
    """The statistics of one site's pictures.

    Args:
        features_ND: N vectors.
        labels_N: 0 to K - 1.
        num_classes: K.
        scatter: Whether second-order statistics are wanted; they cost D * D values.
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
    """Named tensors for the wire; of the symmetric scatter the upper triangle alone."""
    packed = {
        COUNTS: found.counts_K.astype(np.float32),
        SUMS: found.sums_KD.astype(np.float32),
    }
    if found.scatter_DD is not None:
        upper = np.triu_indices(len(found.scatter_DD))
        packed[SCATTER] = found.scatter_DD[upper].astype(np.float32)
    return packed


def statistics_shapes(num_classes: int, dim: int, scatter: bool) -> dict[str, tuple[int, ...]]:
    """What :func:`pack_statistics` gives, by name."""
    shapes: dict[str, tuple[int, ...]] = {COUNTS: (num_classes,), SUMS: (num_classes, dim)}
    if scatter:
        shapes[SCATTER] = (dim * (dim + 1) // 2,)
    return shapes


def unpack_statistics(tensors: dict[str, NDArray[np.float32]]) -> ClassStatistics:
    """A stranger's statistics, of names and shapes that were checked.

    Raises:
        PeerError: if they cannot be: negative counts, sums of a class without a picture, a
            scatter without any picture, or one that is smaller than that of the class means in
            any direction.
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
        # Nothing else would bound it: a site without a picture is not compared with the others.
        raise PeerError("There is no picture, and a scatter that is not zero.")
    # What each class's mean alone adds to the diagonal can never be more than all of it.
    least_D = (sums_KD**2 / np.maximum(counts_K, 1.0)[:, None]).sum(axis=0)
    if (least_D > np.diag(scatter_DD) * (1 + _ROUNDING) + _LEAST).any():
        raise PeerError("The sums and the scatter are not of the same vectors.")
    if not _can_be_scatter(counts_K, sums_KD, scatter_DD):
        raise PeerError("The scatter is that of no vectors with these sums.")
    return found


def read_statistics(tensors: dict[str, NDArray[np.float32]]) -> ClassStatistics:
    """The statistics in tensors that were checked: what :func:`pack_statistics` was given."""
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
    """Whether what is left of a scatter without the class means has no negative variance.

    The diagonal alone would leave every other value free. Costs one factorisation of D x D.
    """
    within_DD = sums_KD.T @ (sums_KD / np.maximum(counts_K, 1.0)[:, None])
    np.subtract(scatter_DD, within_DD, out=within_DD)
    # What float32 values have lost may make a variance of zero a little negative.
    within_DD[np.diag_indices_from(within_DD)] += _LOST * float(np.trace(scatter_DD)) + _LEAST
    try:
        np.linalg.cholesky(within_DD)
    except np.linalg.LinAlgError:
        return False
    return True


def means_scores(found: ClassStatistics) -> tuple[Floats, Floats]:
    """Weights (K, D) and biases (K,) whose largest score is the nearest class mean.

    Scores are shifted by what all classes share, so that they stay small.
    """
    means_KD = found.means_KD
    centre_D = means_KD.mean(axis=0)
    weights_KD = means_KD - centre_D
    return weights_KD, 0.5 * (centre_D @ centre_D - (means_KD**2).sum(axis=1))


def discriminant_scores(
    found: ClassStatistics, shrinkage: float, prior: float
) -> tuple[Floats, Floats]:
    """Weights (K, D) and biases (K,) of linear discriminant analysis.

    One covariance for all classes, shrunken towards a multiple of the identity (Friedman
    1989, "Regularized Discriminant Analysis", equation 18): with about as many pictures as
    dimensions the covariance alone is singular or nearly so. Costs one factorisation of D x D.

    Args:
        found: With its scatter.
        shrinkage: Share of the identity, above 0 to 1; at 1 it is the nearest mean.
        prior: How far classes are taken to be as likely as their counts say, 0 (all alike,
            what macro-F1 asks for) to 1 (what top-1 asks for).
    """
    shrunken_DD = _shrunken(found.within_DD(), shrinkage)
    means_KD = found.means_KD
    centre_D = means_KD.mean(axis=0)
    offset_KD = means_KD - centre_D
    weights_KD = np.linalg.solve(shrunken_DD, offset_KD.T).T
    biases_K = -0.5 * (weights_KD * (means_KD + centre_D)).sum(axis=1)
    # One picture more of each class: a class without any is rare, not impossible.
    share_K = (found.counts_K + 1) / (found.counts_K + 1).sum()
    return weights_KD, biases_K + prior * np.log(share_K)


def semantic_scores(
    found: ClassStatistics, attributes_KA: NDArray[np.floating], shrinkage: float
) -> tuple[Floats, Floats]:
    """Weights (K, D) and biases (K,) that name classes by their attributes, seen or not.

    A bilinear map between vectors and attributes, least squares with two ridges (ESZSL:
    Romera-Paredes and Torr 2015, "An embarrassingly simple approach to zero-shot learning",
    section 3.1, http://proceedings.mlr.press/v37/romera-paredes15.html). Class sums and scatter are
    all it needs of the pictures, so that it federates exactly. A warning: among all classes
    the seen ones win too often; read the harmonic mean, not the score on the unseen alone.

    Args:
        found: With its scatter; classes without a picture are the unseen ones.
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
    # Targets of -1 and 1: what all classes share has been taken out with the mean.
    paired_DA = 2 * (sums_KD[seen_K].T @ described_KA[seen_K]) / count
    left_DA = np.linalg.solve(_shrunken(covariance_DD, shrinkage), paired_DA)
    map_DA = np.linalg.solve(_shrunken(alike_AA, shrinkage), left_DA.T).T
    weights_KD = described_KA @ map_DA.T
    return weights_KD, -weights_KD @ mean_D


def _shrunken(matrix_DD: Floats, shrinkage: float) -> Floats:
    """A covariance with a share of the identity, scaled to its own mean variance."""
    dim = len(matrix_DD)
    scale = max(float(np.trace(matrix_DD)) / dim, _LEAST)
    found: Floats = (1 - shrinkage) * matrix_DD + shrinkage * scale * np.eye(dim)
    return found
