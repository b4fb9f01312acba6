"""Scores of the strongest attacker: how likely each canary is in the data, given a release.

The attacker knows the mechanism's settings, every canary, the rest of the data and each release,
but neither the coins nor the sampling. An error here can weaken or strengthen the audit but not
invalidate it: the bound holds for any guesses.
"""

import numpy as np
from numpy.typing import NDArray


def step_log_likelihood(
    products_M: NDArray[np.float64],
    lengths_M: NDArray[np.float64],
    deviation: float,
    rate: float,
) -> NDArray[np.float64]:
    """float64 (M,): log-likelihood ratio of "in the data" against "not", from one noisy sum.

    A canary in the data adds its vector to the sum with probability ``rate``. Along its direction,
    the sum is then normal around its length, otherwise around 0.

    Args:
        products_M: Inner products of the noisy sum with the canaries' unit directions.
        lengths_M: The canaries' lengths after clipping.
        deviation: Standard deviation of the noise on a coordinate, above 0.
        rate: Sampling rate, above 0 to 1.
    """
    drawn_M = (lengths_M * products_M - lengths_M**2 / 2) / deviation**2
    if rate >= 1.0:
        return drawn_M
    found: NDArray[np.float64] = np.logaddexp(np.log1p(-rate), np.log(rate) + drawn_M)
    return found


def estimate_coins(
    vectors_MQ: NDArray[np.float64], sum_Q: NDArray[np.float64], deviation: float
) -> NDArray[np.float64]:
    """float64 (M,): best linear estimate of fair coins from a noisy sum, minus one half.

    The sum contains vector i if coin i is True. All vectors are known, so their overlap is solved
    for rather than treated as noise.

    Args:
        vectors_MQ: The vectors, clipped as they are added.
        sum_Q: The noisy sum.
        deviation: Standard deviation of its noise.
    """
    rest_Q = sum_Q - vectors_MQ.sum(axis=0) / 2
    # A coin has variance 1/4, so the noise variance is weighted by 4 relative to the overlap.
    overlap_MM = vectors_MQ @ vectors_MQ.T
    overlap_MM[np.diag_indices_from(overlap_MM)] += 4 * deviation**2
    found: NDArray[np.float64] = np.linalg.solve(overlap_MM, vectors_MQ @ rest_Q)
    return found
