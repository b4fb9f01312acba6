"""Scores of compared models with intervals, and whether they differ, by a paired bootstrap.

All models answer the same test pictures, so one draw of subjects (all pictures of a patient, an
animal, a lesion are drawn together) scores them all, and what is hard for all cancels in the
difference. With several seeds, a draw also draws seeds with replacement, which adds the chance of
the training; few seeds show little of it. Bounds are percentiles of the draws: Efron and Tibshirani
1993, "An Introduction to the Bootstrap", chapters 10.1 and 13,
https://doi.org/10.1201/9780429246593.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.inference.intervals import (
    DRAWS,
    FEWEST,
    LEVEL,
    exact,
    macro_f1_of,
    macro_f1_parts,
)

Floats = NDArray[np.float64]
METRICS = ("top1", "macro_f1")
NO_DIFFERENCE, BETTER, WORSE = "no difference", "federated is better", "federated is worse"
TOO_FEW = "too few test subjects to say"

_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; without bounds if there are too few subjects."""

    value: float
    low: float | None
    high: float | None

    def as_json(self) -> dict[str, float | None]:
        """The fields as a dict."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Draws:
    """A row of the comparison: metric -> its value, and its value in each of B draws.

    Where all draws agree (every answer is right), percentiles would claim certainty: a score then
    has the exact binomial bounds over ``count`` subjects, as ``fieldmark evaluate`` gives them. So
    has a difference of zero in all draws: none of ``count`` subjects was answered differently, and
    up to that bound others may be.
    """

    values: Mapping[str, float]
    drawn: Mapping[str, Floats]
    count: int

    def estimate(self, metric: str, other: "Draws | None" = None) -> Estimate:
        """A metric with its interval, or its difference from another row's."""
        value, drawn_B = self.values[metric], self.drawn[metric]
        if other is not None:
            value, drawn_B = value - other.values[metric], drawn_B - other.drawn[metric]
        if not len(drawn_B):
            return Estimate(value, None, None)
        if other is None and np.ptp(drawn_B) < 1e-12:
            bounds = exact(value, self.count)
            return Estimate(value, bounds.low, bounds.high)
        if other is not None and np.ptp(drawn_B) < 1e-12 and abs(value) < 1e-12:
            most = exact(0.0, self.count).high
            return Estimate(value, -most, most)
        low, high = np.quantile(drawn_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(value, min(float(low), value), max(float(high), value))


def draw_rows(
    answers: Mapping[str, Sequence[Sequence[NDArray[np.int64]]]],
    labels_N: NDArray[np.int64],
    subjects: Sequence[str],
    classes: int,
    seed: int,
    draws: int = DRAWS,
) -> dict[str, Draws]:
    """Score all rows of a comparison on the same draws.

    Args:
        answers: Row -> seed -> models -> int64 (N,) answers; a row's score is the mean over its
            models and seeds.
        labels_N: True classes, at least one.
        subjects: N subject ids.
        classes: K.
        seed: Of the draws.
        draws: B.
    """
    numbers_N = np.unique(np.asarray(subjects, dtype=object).astype(str), return_inverse=True)[1]
    count = int(numbers_N.max()) + 1
    generator = np.random.default_rng(seed)
    times_BS = _times(count, draws if count >= FEWEST else 0, generator)
    seeds = max((len(models) for models in answers.values()), default=1)
    weights_BR = (
        generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(times_BS) - 1) / seeds
    )
    weights_BR = np.concatenate([np.full((1, seeds), 1 / seeds), weights_BR])

    def scored(predicted_N: NDArray[np.int64]) -> Floats:
        parts_NM = macro_f1_parts(labels_N, predicted_N, classes)
        parts_SM = np.zeros((count, parts_NM.shape[1]))
        np.add.at(parts_SM, numbers_N, parts_NM)
        step = max(1, _AT_ONCE // max(parts_SM.shape))
        found = []
        for start in range(0, len(times_BS), step):
            sums_BM = times_BS[start : start + step].astype(np.float64) @ parts_SM
            right_BK, there_BK, _ = np.split(sums_BM, 3, axis=1)
            top1_B = right_BK.sum(axis=1) / np.maximum(there_BK.sum(axis=1), 1e-12)
            found.append(np.stack([top1_B, macro_f1_of(sums_BM)]))
        return np.concatenate(found, axis=1)

    rows = {}
    for name, by_seed in answers.items():
        of_seeds_R2B = np.stack(
            [np.mean([scored(one) for one in models], axis=0) for models in by_seed]
        )
        found_2B = np.einsum("rmb,br->mb", of_seeds_R2B, weights_BR[:, : len(by_seed)])
        rows[name] = Draws(
            {metric: float(found_2B[at, 0]) for at, metric in enumerate(METRICS)},
            {metric: found_2B[at, 1:] for at, metric in enumerate(METRICS)},
            count,
        )
    return rows


def _times(count: int, draws: int, generator: np.random.Generator) -> NDArray[np.uint16]:
    """uint16 (1 + draws, S): how often each subject is in a draw; the first is the sample itself.

    Small integers, because all rows share the draws, which are kept.
    """
    times_BS = np.ones((1 + draws, count), dtype=np.uint16)
    shares_S = np.full(count, 1 / count)
    step = max(1, _AT_ONCE // count)
    for start in range(1, 1 + draws, step):
        part_BS = times_BS[start : start + step]
        part_BS[:] = generator.multinomial(count, shares_S, size=len(part_BS))
    return times_BS


def in_words(difference: Estimate) -> str:
    """Whether a difference (federated minus another) is one: not if its interval holds zero."""
    if difference.low is None or difference.high is None:
        return TOO_FEW
    if difference.low <= 0.0 <= difference.high:
        return NO_DIFFERENCE
    return BETTER if difference.value > 0 else WORSE


def differences(rows: Mapping[str, Draws], reference: str) -> dict[str, dict[str, Any]]:
    """Row -> metric -> the reference's difference from it, with its interval and in words."""
    own = rows[reference]
    found: dict[str, dict[str, Any]] = {}
    for name, row in rows.items():
        if name == reference:
            continue
        told = {metric: own.estimate(metric, row) for metric in METRICS}
        found[name] = {m: {**one.as_json(), "told": in_words(one)} for m, one in told.items()}
    return found
