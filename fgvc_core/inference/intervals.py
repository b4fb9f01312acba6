"""Confidence intervals by a bootstrap over subjects, whose pictures are not independent.

The bootstrap draws whole subjects (patients, animals) with replacement and uses bias-corrected and
accelerated percentiles: Efron 1987, "Better Bootstrap Confidence Intervals", J. Am. Stat. Assoc.
82, https://doi.org/10.1080/01621459.1987.10478410; for clusters: Davison and Hinkley 1997, section
3.8, https://doi.org/10.1017/CBO9780511802843.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, ndtri

LEVEL = 0.95
DRAWS = 2000

FEWEST = 10
"""Fewest subjects for a bootstrap."""

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Sums over subjects (B, M) -> the metric of each row (B,)."""

_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A metric with its 95 % interval, all 0 to 1."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """The fields as a dict."""
        return asdict(self)


def wilson(share: float, count: int, level: float = LEVEL) -> tuple[float, float]:
    """The score interval (low, high) of a share among ``count`` independent trials, at least 1.

    Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.

    >>> [round(end, 4) for end in wilson(0.5, 100)]
    [0.4038, 0.5962]
    """
    # In closed form: scipy.stats, which has it, takes longer to import than a report to write.
    right, z = round(share * count), float(ndtri((1 + level) / 2))
    middle = (right + z * z / 2) / (count + z * z)
    reach = z / (count + z * z) * math.sqrt(right * (count - right) / count + z * z / 4)
    return max(middle - reach, 0.0), min(middle + reach, 1.0)


def by_subject(
    parts_NM: Floats,
    subjects: Sequence[str],
    statistic: Statistic,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """A metric of sums over pictures, with its interval over subjects.

    With fewer than ten subjects, or if all resamples agree (every subject is correct), a bootstrap
    is overconfident. The interval is then the exact binomial one over subjects (Clopper and Pearson
    1934, https://doi.org/10.1093/biomet/26.4.404), and 0 to 1 for a single subject.

    Args:
        parts_NM: Contribution of each of N pictures to M sums.
        subjects: N ids; pictures with equal ids are drawn together.
        statistic: Metric of M sums, 0 to 1.
        draws: Number of resamples, at least 100.
        seed: Seed of the resamples.
    """
    numbers_N = np.unique(np.asarray(subjects, dtype=object).astype(str), return_inverse=True)[1]
    count = int(numbers_N.max()) + 1 if len(numbers_N) else 0
    if count == 0:
        return Interval(0.0, 0.0, 1.0)
    parts_SM = np.zeros((count, parts_NM.shape[1]))
    np.add.at(parts_SM, numbers_N, parts_NM)
    total_M = parts_SM.sum(axis=0)
    value = float(statistic(total_M[None])[0])
    if count < FEWEST:
        return exact(value, count)
    found_B = np.concatenate([statistic(sums) for sums in resampled(parts_SM, draws, seed)])
    found_B = found_B[np.isfinite(found_B)]
    if not len(found_B) or np.ptp(found_B) == 0:
        return exact(value, count)
    left_S = statistic(total_M - parts_SM)
    low, high = np.quantile(found_B, _shares(found_B, value, left_S[np.isfinite(left_S)]))
    return Interval(value, float(min(low, value)), float(max(high, value)))


def top1_parts(right_N: NDArray[np.bool_]) -> Floats:
    """float64 (N, 2): contribution of each picture to (correct, total)."""
    return np.stack([right_N.astype(np.float64), np.ones(len(right_N))], axis=1)


def top1_of(sums_B2: Floats) -> Floats:
    """The share of correct answers."""
    return sums_B2[:, 0] / np.maximum(sums_B2[:, 1], 1e-12)


def macro_f1_parts(
    labels_N: NDArray[np.int64], predicted_N: NDArray[np.int64], classes: int
) -> Floats:
    """float64 (N, 3 K): contribution of each picture to each class's hits, labels, predictions."""
    at = np.arange(len(labels_N))
    parts_N3K = np.zeros((len(labels_N), 3, classes))
    right_N = labels_N == predicted_N
    parts_N3K[at[right_N], 0, labels_N[right_N]] = 1
    parts_N3K[at, 1, labels_N] = 1
    parts_N3K[at, 2, predicted_N] = 1
    return parts_N3K.reshape(len(labels_N), 3 * classes)


def macro_f1_of(sums_BM: Floats) -> Floats:
    """Mean F1 over the classes that have pictures."""
    found_BK, there_BK, said_BK = np.split(sums_BM, 3, axis=1)
    both_BK = there_BK + said_BK
    f1_BK = np.divide(2 * found_BK, both_BK, out=np.zeros_like(found_BK), where=both_BK > 0)
    present_BK = there_BK > 0
    return (f1_BK * present_BK).sum(axis=1) / np.maximum(present_BK.sum(axis=1), 1)


def resampled(parts_SM: Floats, draws: int, seed: int) -> Iterator[Floats]:
    """Sums (B, M) of S subjects drawn with replacement, in batches of ``draws`` in all."""
    count = len(parts_SM)
    generator = np.random.default_rng(seed)
    step = max(1, min(draws, _AT_ONCE // max(count, 1)))
    for start in range(0, draws, step):
        times_BS = generator.multinomial(
            count, np.full(count, 1 / count), size=min(step, draws - start)
        )
        yield times_BS.astype(np.float64) @ parts_SM


def _shares(found_B: Floats, value: float, left_S: Floats) -> list[float]:
    """The percentiles of the resamples that bound the interval (BCa)."""
    below = ((found_B < value).sum() + 0.5 * (found_B == value).sum()) / len(found_B)
    bias = float(ndtri(np.clip(below, 1 / len(found_B), 1 - 1 / len(found_B))))
    gaps_S = left_S.mean() - left_S
    spread = float((gaps_S**2).sum())
    skew = float((gaps_S**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    shares = []
    for end in (float(ndtri((1 - LEVEL) / 2)), float(ndtri((1 + LEVEL) / 2))):
        shifted = bias + end
        shares.append(float(ndtr(bias + shifted / max(1 - skew * shifted, 1e-6))))
    return shares


def exact(value: float, count: int) -> Interval:
    """The Clopper-Pearson interval of a share ``value`` of ``count`` subjects."""
    if count < 2:
        return Interval(value, 0.0, 1.0)
    right, tail = value * count, (1 - LEVEL) / 2
    low = float(betaincinv(right, count - right + 1, tail)) if right > 0 else 0.0
    high = float(betaincinv(right + 1, count - right, 1 - tail)) if right < count else 1.0
    return Interval(value, min(low, value), max(high, value))
