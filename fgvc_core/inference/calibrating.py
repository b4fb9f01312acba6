"""Fits a calibration: a temperature, and a threshold for "none of these", both on held-out folds.

Temperature scaling: Guo et al. 2017, section 4.2, https://arxiv.org/abs/1706.04599. Its
temperature is the maximum of a posterior here, for a likelihood without an error has its maximum
at temperature 0. It is kept only if pictures that it was not fitted on show that it helps.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from fgvc_core.errors import DataError
from fgvc_core.inference.calibration import Calibration, HeldOut
from fgvc_core.inference.confidence import COLDEST, HOTTEST, Score, known_scores
from fgvc_core.inference.intervals import resampled
from fgvc_core.inference.reliability import BINS, gaps

PRIOR_WIDTH = math.log(2)
"""Standard deviation of the normal prior on the log temperature, whose mean is 0.

Two thirds of its mass lie between 0.5 and 2, 95 % between a quarter and 4: label smoothing asks for
about a half (docs/using-a-model.md), an overfitted head for two to four. It weighs as much as a few
pictures, and so decides only where they say little.
"""

FOLDS = 5

FEWEST_PICTURES = 50
"""Below it, five folds of ten pictures say nothing of an error over 15 bins."""

FEWEST_ERRORS = 5
"""Below it a fold may hold no error, and how sure to be when wrong cannot be learned from none."""

FEWEST_SUBJECTS = 10
"""As for an interval: subjects are what is drawn."""

CERTAIN = 0.99
"""Share of resamples in which both figures have to fall for a temperature to be kept.

Of 5,269 simulated models with 50 to 1,000 pictures and at least 5 errors, 1,184 passed, and none
of these had a calibration error that was 0.01 higher on 8,000 others; with 0.95 it was 3 of 1,515.
"""

FALSE_REFUSALS = 0.05
"""Share of pictures of the classes that "none of these" is fitted to refuse."""

FEWEST_KNOWN = 40
"""Fewest pictures for a threshold: two of them then lie on its wrong side, give or take 1.4."""

_DRAWS = 1000

_ROUNDING = 1e-6
"""Relative distance of the threshold from the picture that sets it: other runtimes round the same
logits otherwise."""

Floats = NDArray[np.float64]


class Fitted(NamedTuple):
    """A temperature with its record on held-out folds.

    Attributes:
        temperature: The temperature; None if it is not kept.
        why_not: Why not; empty if it is kept.
        held_out: The figures; None if there were too few pictures.
        folds_N: float64, the temperature that each picture's own fold had no part in; 1 if none
            is kept.
    """

    temperature: float | None
    why_not: str
    held_out: HeldOut | None
    folds_N: Floats


def fit_temperature(logits_NK: Floats, labels_N: NDArray[np.int64]) -> float:
    """The temperature of the highest posterior, 0.25 to 8.

    Args:
        logits_NK: Logits of at least one picture that the model has not learned from.
        labels_N: Their classes.
    """
    at = np.arange(len(labels_N))

    def loss(log_temperature: float) -> float:
        log_NK = log_softmax(logits_NK / np.exp(log_temperature), axis=1)
        prior = log_temperature**2 / (2 * PRIOR_WIDTH**2)
        return float(prior - log_NK[at, labels_N].sum())

    bounds = (np.log(COLDEST), np.log(HOTTEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def folds_of(subjects: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """int64 (N,): the fold of each picture, 0 to 4; a subject is in one fold.

    Args:
        subjects: Number of each picture's subject, 0 to S - 1, each occurring.
        seed: Seed of the assignment.
    """
    count = int(subjects.max()) + 1 if len(subjects) else 0
    order = np.random.default_rng(seed).permutation(count)
    return np.asarray(order % FOLDS, dtype=np.int64)[subjects]


def cross_fitted(
    logits_NK: Floats, labels_N: NDArray[np.int64], subjects: NDArray[np.int64], seed: int = 0
) -> Fitted:
    """Fit a temperature, and keep it only if it helps on the folds that it was not fitted on.

    It helps if both the negative log likelihood and the expected calibration error are lower in
    99 % of resamples of the subjects.

    Args:
        logits_NK: Logits of pictures that the model has not learned from.
        labels_N: Their classes.
        subjects: Number of each picture's subject, 0 to S - 1.
        seed: Seed of folds and resamples.
    """
    count = len(labels_N)
    errors = int((logits_NK.argmax(axis=1) != labels_N).sum())
    few = _too_few(count, errors, len(np.unique(subjects)))
    ones_N = np.ones(count)
    if few:
        return Fitted(None, few, None, ones_N)
    fold_N = folds_of(subjects, seed)
    folds_N = ones_N.copy()
    for fold in range(FOLDS):
        rest_N = fold_N != fold
        folds_N[~rest_N] = fit_temperature(logits_NK[rest_N], labels_N[rest_N])
    parts_SM = _summed(
        np.concatenate(
            [
                np.ones((count, 1)),
                _surprise(logits_NK, labels_N, ones_N),
                _surprise(logits_NK, labels_N, folds_N),
                gaps(logits_NK, labels_N, ones_N[:, None]),
                gaps(logits_NK, labels_N, folds_N[:, None]),
            ],
            axis=1,
        ),
        subjects,
    )
    held_out = HeldOut(**_figures(parts_SM.sum(axis=0)))
    lower_B2 = np.concatenate([_lower(sums) for sums in resampled(parts_SM, _DRAWS, seed)])
    nll, ece = lower_B2.mean(axis=0)
    if nll < CERTAIN or ece < CERTAIN:
        why = (
            "not improved: on held-out folds the log loss goes from "
            f"{held_out.nll_before:.3f} to {held_out.nll_after:.3f} and the calibration error "
            f"from {held_out.ece_before:.3f} to {held_out.ece_after:.3f}, and both have to fall in "
            f"{CERTAIN:.0%} of resamples"
        )
        return Fitted(None, why, held_out, ones_N)
    return Fitted(fit_temperature(logits_NK, labels_N), "", held_out, folds_N)


def threshold_of(scores_N: Floats) -> float:
    """The score below which at most 5 % of other pictures of the classes are expected.

    The k-th smallest of N scores, k = 5 % of N + 1: whatever their distribution, the next
    picture is below it with a probability of at most 5 % (Vovk, Gammerman, Shafer 2005,
    "Algorithmic Learning in a Random World", section 2.2).
    """
    place = max(math.floor(FALSE_REFUSALS * (len(scores_N) + 1)), 1)
    score = float(np.partition(scores_N, place - 1)[place - 1])
    return score - _ROUNDING * max(abs(score), 1.0)


def calibrate(
    logits_NK: Floats,
    labels_N: NDArray[np.int64],
    *,
    checkpoint: str,
    on: str,
    subjects: tuple[str, ...] | None = None,
    score: Score = "probability",
    seed: int = 0,
) -> Calibration:
    """Fit temperature and threshold, each as far as the pictures allow.

    Args:
        logits_NK: Logits of pictures that the model has not learned from.
        labels_N: Their classes.
        checkpoint: Digest of the checkpoint.
        on: Description of the pictures.
        subjects: N ids; pictures of one subject are in one fold. None: each is its own.
        score: Score that detects "none of these".
        seed: Seed of folds and resamples.

    Raises:
        DataError: if there are no pictures.
    """
    if not len(labels_N):
        raise DataError(
            "There is no picture to fit a calibration on.",
            why="Confidence cannot be calibrated on nothing.",
            remedy="Set data.val_fraction above 0, or name data of your own with --data.",
        )
    numbers_N = np.arange(len(labels_N))
    if subjects is not None:
        numbers_N = np.unique(np.asarray(subjects, dtype=object).astype(str), return_inverse=True)[
            1
        ]
    fitted = cross_fitted(logits_NK, labels_N, numbers_N, seed)
    threshold = refused = None
    if len(labels_N) >= FEWEST_KNOWN:
        divisor = 1.0 if fitted.temperature is None else fitted.temperature
        threshold = threshold_of(known_scores(logits_NK, score, divisor))
        refused = _refused(logits_NK, fitted.folds_N, folds_of(numbers_N, seed), score)
    return Calibration(
        checkpoint=checkpoint,
        examples=len(labels_N),
        subjects=len(np.unique(numbers_N)),
        errors=int((logits_NK.argmax(axis=1) != labels_N).sum()),
        on=on,
        temperature=fitted.temperature,
        why_not=fitted.why_not,
        held_out=fitted.held_out,
        score=score,
        threshold=threshold,
        false_refusals=FALSE_REFUSALS,
        refused=refused,
    )


def _too_few(count: int, errors: int, subjects: int) -> str:
    for found, fewest, what in (
        (count, FEWEST_PICTURES, "pictures"),
        (errors, FEWEST_ERRORS, "errors"),
        (subjects, FEWEST_SUBJECTS, "subjects"),
    ):
        if found < fewest:
            return f"too few {what} to fit a temperature: {found}, and {fewest} are needed"
    return ""


def _surprise(logits_NK: Floats, labels_N: NDArray[np.int64], temperature_N: Floats) -> Floats:
    """float64 (N, 1): negative log likelihood of each picture's class."""
    log_NK = log_softmax(logits_NK / temperature_N[:, None], axis=1)
    return -log_NK[np.arange(len(labels_N)), labels_N][:, None]


def _summed(parts_NM: Floats, subjects: NDArray[np.int64]) -> Floats:
    found_SM = np.zeros((int(subjects.max()) + 1, parts_NM.shape[1]))
    np.add.at(found_SM, subjects, parts_NM)
    return found_SM


def _figures(sums_M: Floats) -> dict[str, float]:
    count = sums_M[0]
    ece = [float(np.abs(part).sum() / count) for part in np.split(sums_M[3:], [BINS])]
    return {
        "nll_before": float(sums_M[1] / count),
        "nll_after": float(sums_M[2] / count),
        "ece_before": min(ece[0], 1.0),
        "ece_after": min(ece[1], 1.0),
    }


def _lower(sums_BM: Floats) -> NDArray[np.bool_]:
    """bool (B, 2): in each resample, whether the log likelihood's and the bins' error fell."""
    before_BM, after_BM = sums_BM[:, 3 : 3 + BINS], sums_BM[:, 3 + BINS :]
    ece_B = np.abs(after_BM).sum(axis=1) < np.abs(before_BM).sum(axis=1)
    return np.stack([sums_BM[:, 2] < sums_BM[:, 1], ece_B], axis=1)


def _refused(logits_NK: Floats, folds_N: Floats, fold_N: NDArray[np.int64], score: Score) -> float:
    """Share of pictures below the threshold that the other folds set."""
    scores_N = np.empty(len(fold_N))
    for divisor in np.unique(folds_N):
        same_N = folds_N == divisor
        scores_N[same_N] = known_scores(logits_NK[same_N], score, float(divisor))
    refused = 0
    for fold in range(FOLDS):
        rest_N = fold_N != fold
        if rest_N.all() or not rest_N.any():
            continue
        refused += int((scores_N[~rest_N] < threshold_of(scores_N[rest_N])).sum())
    return refused / len(fold_N)
