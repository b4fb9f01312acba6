"""Membership inference on a site's own units: can an attacker tell which were trained on?

Reports the usual metrics (Carlini et al. 2022, "Membership inference attacks from first
principles", https://arxiv.org/abs/2112.03570): the area under the ROC curve, and the true-positive
rate at low false-positive rates. The area alone can stay at one half although the attacker is
certain about a few members.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta, rankdata

from fgvc_core.training.examples import Examples
from fgvc_core.training.learner import Learner

FALSE_ALARMS = (0.01, 0.1)
"""False-positive rates at which the true-positive rate is reported."""

_BATCH = 128


@dataclass(frozen=True)
class Membership:
    """Result of the attack.

    Attributes:
        members: Number of units that were trained on.
        others: Number of units that were not.
        auc: Area under the ROC curve, 0 to 1; 0.5 is a guess. None if either side is empty.
        found: True-positive rate at each false-positive rate in :data:`FALSE_ALARMS`.
        epsilon: Lower bound from Clopper-Pearson intervals of both rates.
    """

    members: int
    others: int
    auc: float | None
    found: dict[float, float]
    epsilon: float


@torch.inference_mode()
def confidences(learner: Learner, examples: Examples) -> NDArray[np.float64]:
    """float64 (N,): log p / (1 - p) of each picture's true label (Carlini et al., section 4.1)."""
    learner.model.eval()
    found = []
    for positions in torch.arange(len(examples)).split(_BATCH):
        logits_BK = examples.logits(learner.model, positions, None).double().cpu()
        labels_B1 = examples.labels_N[positions][:, None]
        own_B = logits_BK.gather(1, labels_B1)[:, 0]
        others_B = logits_BK.scatter(1, labels_B1, -torch.inf).logsumexp(dim=1)
        found.append((own_B - others_B).numpy())
    # Noise can drive a model to non-finite logits; these carry no information about membership.
    return np.nan_to_num(np.concatenate(found), nan=0.0, posinf=0.0, neginf=0.0)


def mean_by_unit(values_N: NDArray[np.float64], units_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 (U,): each unit's mean."""
    return np.bincount(units_N, weights=values_N) / np.maximum(np.bincount(units_N), 1)


def infer_membership(
    scores_U: NDArray[np.float64],
    included_U: NDArray[np.bool_],
    delta: float,
    error: float,
    generator: np.random.Generator,
) -> Membership:
    """Metrics of the attack, from its scores.

    Args:
        scores_U: High if a unit seems to have been trained on.
        included_U: Whether it was.
        delta: The delta at which epsilon was claimed.
        error: Probability that the lower bound fails, 0 to 1, if units are independent trials. In
            one run they are only nearly so: treat the bound as indicative.
        generator: Splits the units into those that choose the threshold and those that are counted.
    """
    inside, outside = scores_U[included_U], scores_U[~included_U]
    if not len(inside) or not len(outside):
        return Membership(len(inside), len(outside), None, {}, 0.0)
    ranks = rankdata(np.concatenate([inside, outside]))
    pairs = len(inside) * len(outside)
    auc = (ranks[: len(inside)].sum() - len(inside) * (len(inside) + 1) / 2) / pairs
    found = {rate: _found_at(inside, outside, rate) for rate in FALSE_ALARMS}
    epsilon = _epsilon(inside, outside, delta, error, generator)
    return Membership(len(inside), len(outside), float(auc), found, epsilon)


def clopper_pearson(hits: int, trials: int, error: float) -> tuple[float, float]:
    """Lower and upper bound of a probability; each fails with probability ``error`` at most.

    >>> [round(bound, 4) for bound in clopper_pearson(0, 10, 0.05)]
    [0.0, 0.2589]
    """
    low = float(beta.ppf(error, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - error, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def _found_at(inside: NDArray[np.float64], outside: NDArray[np.float64], rate: float) -> float:
    """Share of members above the lowest threshold whose false-alarm rate is at most ``rate``."""
    threshold = np.sort(outside)[len(outside) - 1 - int(rate * len(outside))]
    return float((inside > threshold).mean())


def _epsilon(
    inside: NDArray[np.float64],
    outside: NDArray[np.float64],
    delta: float,
    error: float,
    generator: np.random.Generator,
) -> float:
    """Bound from one half of the units; the other half chooses threshold and direction."""
    inside, outside = generator.permutation(inside), generator.permutation(outside)
    first = inside[::2], outside[::2]
    second = inside[1::2], outside[1::2]
    if not len(second[0]) or not len(second[1]):
        return 0.0
    values = np.unique(np.concatenate(first)).tolist()
    tries = [(sign, sign * value) for sign in (1, -1) for value in values]
    sign, at = max(tries, key=lambda t: _ratio(first, t[0], t[1], delta, error))
    return max(_ratio(second, sign, at, delta, error), 0.0)


def _ratio(
    pair: tuple[NDArray[np.float64], NDArray[np.float64]],
    sign: int,
    at: float,
    delta: float,
    error: float,
) -> float:
    """Lower bound on epsilon from "in" above a threshold, or (sign -1) "out" below it."""
    hit, alarm = pair if sign > 0 else pair[::-1]
    low, _ = clopper_pearson(int((hit * sign > at).sum()), len(hit), error / 2)
    _, high = clopper_pearson(int((alarm * sign > at).sum()), len(alarm), error / 2)
    return float(np.log((low - delta) / high)) if low > delta else -np.inf
