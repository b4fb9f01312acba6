"""Active learning: selects the unlabeled pictures to label next, from a model's outputs.

``entropy`` and ``margin`` (Settles 2009, "Active Learning Literature Survey", section 3.1,
https://minds.wisconsin.edu/handle/1793/60660) select the most uncertain pictures; ``core-set``
(Sener and Savarese 2018, algorithm 1, https://arxiv.org/abs/1708.00489) greedily selects those
farthest from all labeled ones: at most twice the optimal radius. Cost: one pass over the pictures,
and for ``core-set`` N x D per pick. With few labels a model's confidence is unreliable, and
uncertain pictures tend to be alike; at first, random picks or ``core-set`` may do as well.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, softmax

Method = Literal["entropy", "margin", "core-set", "random"]
METHODS: tuple[Method, ...] = get_args(Method)

Scores = NDArray[np.float64]


def entropy(logits_NK: NDArray[np.float32]) -> Scores:
    """float64 (N,): entropy of the prediction in nats, 0 to log K; high is uncertain."""
    found: Scores = entr(softmax(logits_NK.astype(np.float64), axis=1)).sum(axis=1)
    return found


def margin(logits_NK: NDArray[np.float32]) -> Scores:
    """float64 (N,): difference of the two highest probabilities, 0 to 1; low is uncertain."""
    shares_NK = softmax(logits_NK.astype(np.float64), axis=1)
    if shares_NK.shape[1] < 2:
        return np.ones(len(shares_NK))
    first_N2 = np.partition(shares_NK, -2, axis=1)[:, -2:]
    found: Scores = first_N2[:, 1] - first_N2[:, 0]
    return found


def farthest_first(
    features_ND: NDArray[np.float32], covered_MD: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], Scores]:
    """Greedy k-center: repeatedly pick the picture farthest from all centers.

    Args:
        features_ND: Vectors of the candidates.
        covered_MD: Vectors of existing centers; without any, the first pick is the candidate
            nearest to the mean.
        count: Number of picks, 0 to N.

    Returns:
        int64 (count,) positions in order of picking, and float64 (count,) the distance of each
        to its nearest center when picked; infinite if there was no center.
    """
    vectors_ND = features_ND.astype(np.float64)
    nearest_N = np.full(len(vectors_ND), np.inf)
    for centre_D in covered_MD.astype(np.float64):
        np.minimum(nearest_N, _distances(vectors_ND, centre_D), out=nearest_N)
    picked: list[int] = []
    radii: list[float] = []
    for _ in range(count):
        if np.isinf(nearest_N).all():
            # No center yet: start nearest to the mean.
            at = int(np.argmin(_distances(vectors_ND, vectors_ND.mean(axis=0))))
        else:
            at = int(np.argmax(nearest_N))
        picked.append(at)
        radii.append(float(nearest_N[at]))
        np.minimum(nearest_N, _distances(vectors_ND, vectors_ND[at]), out=nearest_N)
        # Below 0, because duplicates of a pick are at distance 0 but may still be picked.
        nearest_N[at] = -1.0
    return np.array(picked, dtype=np.int64), np.array(radii, dtype=np.float64)


def pick(
    method: Method,
    logits_NK: NDArray[np.float32],
    features_ND: NDArray[np.float32],
    covered_MD: NDArray[np.float32],
    count: int,
    seed: int,
) -> tuple[NDArray[np.int64], Scores]:
    """Select the pictures to label next.

    Args:
        method: The selection method.
        logits_NK: Logits of the unlabeled pictures.
        features_ND: Their vectors before the head.
        covered_MD: Vectors of the labeled pictures, for ``core-set`` only.
        count: Number of picks, at least 0; all pictures if there are fewer.
        seed: Seed for ``random`` only; the other methods are deterministic.

    Returns:
        int64 (C,) distinct positions, best first, and float64 (C,) their scores: entropy
        (nats), margin (0 to 1), distance, or a random number (0 to 1).
    """
    count = min(count, len(logits_NK))
    if method == "core-set":
        return farthest_first(features_ND, covered_MD, count)
    if method == "entropy":
        scores_N = entropy(logits_NK)
        order_N = np.argsort(-scores_N, kind="stable")
    elif method == "margin":
        scores_N = margin(logits_NK)
        order_N = np.argsort(scores_N, kind="stable")
    else:
        scores_N = np.random.default_rng(seed).random(len(logits_NK))
        order_N = np.argsort(-scores_N, kind="stable")
    chosen = order_N[:count]
    return chosen.astype(np.int64), scores_N[chosen]


def _distances(vectors_ND: Scores, centre_D: Scores) -> Scores:
    found: Scores = np.linalg.norm(vectors_ND - centre_D, axis=1)
    return found
