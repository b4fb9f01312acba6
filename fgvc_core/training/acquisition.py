"""Which unlabelled pictures are worth a label next, from what a model makes of them.

``entropy`` and ``margin`` (Settles 2009, "Active Learning Literature Survey", section 3.1,
https://minds.wisconsin.edu/handle/1793/60660) take what the model is least sure of; ``core-set``
(Sener and Savarese 2018, algorithm 1, https://arxiv.org/abs/1708.00489) takes what is farthest
from all that has a label, greedily: at most twice the best radius. Cost: one pass over the
pictures, and for ``core-set`` N x D for each pick. A warning: a model of few labels is sure of
the wrong things, and uncertain pictures tend to be alike; at the very beginning random picks, or
``core-set``, may do as well.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, softmax

Method = Literal["entropy", "margin", "core-set", "random"]
METHODS: tuple[Method, ...] = get_args(Method)

Scores = NDArray[np.float64]


def entropy(logits_NK: NDArray[np.float32]) -> Scores:
    """float64 (N,): entropy of the predicted shares, in nats, 0 to log K; high is unsure."""
    found: Scores = entr(softmax(logits_NK.astype(np.float64), axis=1)).sum(axis=1)
    return found


def margin(logits_NK: NDArray[np.float32]) -> Scores:
    """float64 (N,): share of the likeliest class less the next one's, 0 to 1; low is unsure."""
    shares_NK = softmax(logits_NK.astype(np.float64), axis=1)
    if shares_NK.shape[1] < 2:
        return np.ones(len(shares_NK))
    first_N2 = np.partition(shares_NK, -2, axis=1)[:, -2:]
    found: Scores = first_N2[:, 1] - first_N2[:, 0]
    return found


def farthest_first(
    features_ND: NDArray[np.float32], covered_MD: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], Scores]:
    """Greedy k-centres: again and again the picture that is farthest from all centres.

    Args:
        features_ND: Vectors of those that may be picked.
        covered_MD: Vectors of the centres that are there; with none, the first pick is the
            one nearest to the mean.
        count: How many are picked, 0 to N.

    Returns:
        int64 (count,) positions in the order of picking, and float64 (count,) each one's
        distance to its nearest centre when it was picked; infinite for one without any.
    """
    vectors_ND = features_ND.astype(np.float64)
    nearest_N = np.full(len(vectors_ND), np.inf)
    for centre_D in covered_MD.astype(np.float64):
        np.minimum(nearest_N, _distances(vectors_ND, centre_D), out=nearest_N)
    picked: list[int] = []
    radii: list[float] = []
    for _ in range(count):
        if np.isinf(nearest_N).all():
            # No centre yet: the middle of what there is.
            at = int(np.argmin(_distances(vectors_ND, vectors_ND.mean(axis=0))))
        else:
            at = int(np.argmax(nearest_N))
        picked.append(at)
        radii.append(float(nearest_N[at]))
        np.minimum(nearest_N, _distances(vectors_ND, vectors_ND[at]), out=nearest_N)
        # Byte-equal pictures are at distance 0 as well: what is picked is never picked again.
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
    """Which pictures to have labelled next.

    Args:
        method: How they are chosen.
        logits_NK: Of the unlabelled pictures.
        features_ND: Their vectors before the head.
        covered_MD: Those of the labelled pictures; only ``core-set`` looks at them.
        count: How many, at least 0; of fewer than that all are picked.
        seed: Of ``random`` alone; the others draw nothing.

    Returns:
        int64 (C,) distinct positions, most wanted first, and float64 (C,) what each was picked
        by: entropy (nats), margin (0 to 1), distance, or a random number (0 to 1).
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
