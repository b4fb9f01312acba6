"""From noisy class sums to a classifier: the server's posterior of the class means.

This is post-processing: it uses only what was released. The model, for site s, class k and P
directions:

    count n_sk: unknown, with a prior over 0, 1, 2, ... that is estimated from all cells;
    released count ~ N(n_sk, count noise); released sum ~ N(n_sk mean_k, noise + n_sk spread);
    mean_k ~ N(0, C), with C estimated from all classes.

A site that infers for itself also has its own sums and counts exactly. They enter as an observation
without noise, n mean + N(0, n spread), beside the noisy ones of the others.

It is solved by variational expectation-maximization (Bishop 2006, chapter 10). The sums contain
more information about n_sk than the noisy counts do, and a site that seems to have no pictures of a
class stops contributing its noise. On inner splits of real training pictures, this raised top-1 at
epsilon 2 from 0.40 (weighted by noisy counts) to 0.46.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgvc_core.privacy.settings import PrivacySettings

PASSES = 12
_MOST = 400
"""Least upper end of the grid of counts."""

_FLOOR = 1e-6


@dataclass(frozen=True)
class ClassMeans:
    """Posterior of the class means.

    Attributes:
        means_KP: float64 (K, P).
        variances_KP: float64 (K, P), variance of each coordinate of the mean.
        counts_SK: float64 (S, K), expected counts.
    """

    means_KP: NDArray[np.float64]
    variances_KP: NDArray[np.float64]
    counts_SK: NDArray[np.float64]


@dataclass(frozen=True)
class ExactSums:
    """Class sums without noise: of the site that infers, for that site alone.

    Attributes:
        sums_KP: float64 (K, P).
        counts_K: float64 (K,).
    """

    sums_KP: NDArray[np.float64]
    counts_K: NDArray[np.float64]


def infer_means(
    sums_SKP: NDArray[np.float64],
    counts_SK: NDArray[np.float64],
    sum_noise: float,
    count_noise: float,
    within_spread: float,
    units_S: NDArray[np.float64],
    exact: ExactSums | None = None,
) -> ClassMeans:
    """Infer class means from noisy sums.

    Args:
        sums_SKP: Noisy class sums of vectors of length at most 1.
        counts_SK: Noisy counts.
        sum_noise: Standard deviation of the noise on each coordinate of a sum.
        count_noise: Standard deviation of the noise on each count.
        within_spread: Expected squared distance of a vector from its class's mean.
        units_S: Each site's public number of units, which sets the prior's scale.
        exact: Further sums, not among the noisy ones, without noise. What is inferred is then as
            private as they are, and may not leave their site.
    """
    sites, classes, directions = sums_SKP.shape
    spread = within_spread / directions
    if exact is None:
        exact = ExactSums(np.zeros((classes, directions)), np.zeros(classes))
    own_KP, own_K = exact.sums_KP / spread, exact.counts_K / spread
    counts_G = _grid(counts_SK, count_noise)
    variance_G = sum_noise**2 + counts_G * spread
    # Initial prior: half of the cells empty, a geometric tail for the others.
    scale = max(float(units_S.mean()) / classes, 1.0)
    log_prior_G = -counts_G / (2 * scale)
    log_prior_G[0] = np.log(scale)
    log_prior_G = log_prior_G - np.logaddexp.reduce(log_prior_G)
    covariance_PP = np.eye(directions) * (1 - within_spread) / directions
    start_SK = np.clip(counts_SK, 0.0, None) + 0.3
    first_SK = start_SK / (sum_noise**2 + start_SK * spread)
    means_KP, variances_KP, covariance_PP = _means(
        _weighed(sums_SKP, first_SK) + own_KP,
        (start_SK * first_SK).sum(axis=0) + own_K,
        covariance_PP,
    )
    weights_SKG = np.zeros((sites, classes, len(counts_G)))
    for number in range(PASSES):
        weights_SKG = _count_weights(
            sums_SKP,
            counts_SK,
            means_KP,
            variances_KP,
            counts_G,
            variance_G,
            count_noise,
            log_prior_G,
        )
        if number > 1:
            share_G = weights_SKG.mean(axis=(0, 1))
            log_prior_G = np.log(share_G + 1e-4) - np.log((share_G + 1e-4).sum())
        first_SK = weights_SKG @ (counts_G / variance_G)
        second_K = (weights_SKG @ (counts_G**2 / variance_G)).sum(axis=0)
        means_KP, variances_KP, covariance_PP = _means(
            _weighed(sums_SKP, first_SK) + own_KP, second_K + own_K, covariance_PP
        )
    return ClassMeans(means_KP, variances_KP, weights_SKG @ counts_G)


def linear_scores(
    found: ClassMeans,
    within_spread: float,
    by_counts: bool = False,
    prior_K: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (K, P) and biases (K,) that score vectors of length 1.

    The score is the log density of a vector under each class, with the spread and the uncertainty
    of the mean isotropic. For vectors of one length it is linear.

    Args:
        found: The result of :func:`infer_means`.
        within_spread: As in :func:`infer_means`.
        by_counts: Whether class priors follow the expected counts rather than being uniform.
        prior_K: Class shares to take as priors instead, above 0.
    """
    means_KP = found.means_KP
    directions = means_KP.shape[1]
    variance_K = within_spread / directions + found.variances_KP.mean(axis=1)
    weights_KP = means_KP / variance_K[:, None]
    squares_K = (means_KP**2).sum(axis=1) + 1.0
    biases_K = -0.5 * squares_K / variance_K - 0.5 * directions * np.log(variance_K)
    if by_counts and prior_K is None:
        # Add one picture per class: a class that the noise hides is rare, not impossible.
        counts_K = found.counts_SK.sum(axis=0) + 1.0
        prior_K = counts_K / counts_K.sum()
    if prior_K is not None:
        biases_K = biases_K + np.log(prior_K)
    return weights_KP, biases_K - biases_K.max()


def head_of_sums(
    sums_SKQ: NDArray[np.float64],
    deviation: float,
    units_S: NDArray[np.float64],
    privacy: PrivacySettings,
    exact: ExactSums | None = None,
) -> dict[str, NDArray[np.float32]]:
    """A subspace head's weights and biases, by the names of its tensors.

    Args:
        sums_SKQ: Noisy class sums (S, K, P + 1); the last column is the count's coordinate.
        deviation: Standard deviation of the noise on each of their values.
        units_S: As in :func:`infer_means`.
        privacy: ``[privacy]``: the spread, the prior, the count's coordinate.
        exact: As in :func:`infer_means`; the classes' shares are then those of its counts.
    """
    count = privacy.count_coordinate
    found = infer_means(
        sums_SKQ[:, :, :-1],
        sums_SKQ[:, :, -1] / count,
        deviation,
        deviation / count,
        privacy.within_spread,
        units_S,
        exact,
    )
    shares_K = None
    if exact is not None:
        # One picture more of each: a class that has not been seen here is rare, not impossible.
        shares_K = (exact.counts_K + 1) / (exact.counts_K + 1).sum()
    weights_KP, biases_K = linear_scores(
        found, privacy.within_spread, privacy.class_prior == "counts", shares_K
    )
    return {
        "head.weight": weights_KP.astype(np.float32),
        "head.bias": biases_K.astype(np.float32),
    }


def _grid(counts_SK: NDArray[np.float64], count_noise: float) -> NDArray[np.float64]:
    """Grid of possible counts: every integer to 64, then in growing steps."""
    top = max(float(counts_SK.max()) + 4 * count_noise, _MOST)
    wide = np.unique(np.rint(np.geomspace(64, max(top, 65), 64)))
    return np.unique(np.concatenate([np.arange(65.0), wide]))


def _count_weights(
    sums_SKP: NDArray[np.float64],
    counts_SK: NDArray[np.float64],
    means_KP: NDArray[np.float64],
    variances_KP: NDArray[np.float64],
    counts_G: NDArray[np.float64],
    variance_G: NDArray[np.float64],
    count_noise: float,
    log_prior_G: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(S, K, G): the posterior probability of each count in each cell."""
    directions = means_KP.shape[1]
    squares_SK = (sums_SKP**2).sum(axis=2)
    along_SK = np.einsum("skp,kp->sk", sums_SKP, means_KP)
    length_K = (means_KP**2 + variances_KP).sum(axis=1)
    distance_SKG = (
        squares_SK[:, :, None]
        - 2 * counts_G * along_SK[:, :, None]
        + counts_G**2 * length_K[None, :, None]
    )
    log_SKG = (
        log_prior_G
        - (counts_SK[:, :, None] - counts_G) ** 2 / (2 * count_noise**2)
        - distance_SKG / (2 * variance_G)
        - directions / 2 * np.log(variance_G)
    )
    log_SKG -= log_SKG.max(axis=2, keepdims=True)
    weights_SKG: NDArray[np.float64] = np.exp(log_SKG)
    return weights_SKG / weights_SKG.sum(axis=2, keepdims=True)


def _weighed(sums_SKP: NDArray[np.float64], first_SK: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K, P): the sites' sums, each by its weight."""
    found: NDArray[np.float64] = np.einsum("sk,skp->kp", first_SK, sums_SKP)
    return found


def _means(
    weighed_KP: NDArray[np.float64],
    second_K: NDArray[np.float64],
    covariance_PP: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Means and variances under the prior N(0, C), and the updated C."""
    values_P, axes_PP = np.linalg.eigh(covariance_PP)
    values_P = np.maximum(values_P, _FLOOR)
    turned_KP = weighed_KP @ axes_PP
    spread_KP = 1 / (second_K[:, None] + 1 / values_P[None, :])
    means_KP = (turned_KP * spread_KP) @ axes_PP.T
    own_PP = axes_PP @ np.diag(spread_KP.sum(axis=0)) @ axes_PP.T
    suggested_PP = (means_KP.T @ means_KP + own_PP) / len(means_KP)
    variances_KP = np.einsum("pq,kq->kp", axes_PP**2, spread_KP)
    return means_KP, variances_KP, suggested_PP
