"""Plain reference for any head on fixed vectors: logistic regression, with C by cross-validation.

scikit-learn's multinomial logistic regression with an L2 penalty. Folds keep subjects whole and
classes balanced. A head that is worse than this is not worth its settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Values of C, the inverse strength of the penalty; tried upward until the score falls."""

FOLDS = 5
ITERATIONS = 300
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Plain:
    """A fitted regression.

    Attributes:
        predicted_M: int64 (M,), the classes of the scored vectors.
        strength: The C that was chosen; None if no fold could be made.
        score: Its top-1 in cross-validation on the training vectors, 0 to 1; None likewise.
    """

    predicted_M: NDArray[np.int64]
    strength: float | None
    score: float | None


def plain_regression(
    vectors_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    subjects: Sequence[str],
    scored_MD: NDArray[np.float32],
    seed: int,
) -> Plain:
    """Fit on training vectors, and name the classes of others.

    Vectors are centered and divided by their overall standard deviation, both of the training
    vectors, so that one range of C serves every backbone.

    Args:
        vectors_ND: Training vectors, at least one.
        labels_N: Their classes; classes without a vector are never predicted.
        subjects: N ids; vectors with equal ids are in one fold.
        scored_MD: Vectors to classify. They take no part in the choice of C.
        seed: Of the folds.
    """
    kinds = np.unique(labels_N)
    if len(kinds) < 2:
        return Plain(np.full(len(scored_MD), kinds[0], dtype=np.int64), None, None)
    mean_D, scale = vectors_ND.mean(axis=0), max(float(vectors_ND.std()), 1e-6)
    vectors_ND = ((vectors_ND - mean_D) / scale).astype(np.float32)
    chosen = _chosen(vectors_ND, labels_N, subjects, seed)
    model = _model(1.0 if chosen is None else chosen[0])
    model.fit(vectors_ND, labels_N)
    predicted_M = model.predict(((scored_MD - mean_D) / scale).astype(np.float32))
    strength, score = chosen or (None, None)
    return Plain(predicted_M.astype(np.int64), strength, score)


def _chosen(
    vectors_ND: NDArray[np.float32], labels_N: NDArray[np.int64], subjects: Sequence[str], seed: int
) -> tuple[float, float] | None:
    """(C, its top-1 over all folds); None if there are too few subjects for two folds."""
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min(len({s for s, k in zip(subjects, labels_N, strict=True) if k == kind})
                 for kind in np.unique(labels_N))  # fmt: skip
    folds = max(min(FOLDS, fewest), 2)
    if len(set(subjects)) < folds:
        return None
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = [
        (train, held)
        for train, held in split.split(vectors_ND, labels_N, np.asarray(subjects, dtype=str))
        if len(np.unique(labels_N[train])) > 1 and len(held)
    ]
    if not parts:
        return None
    models = [_model(STRENGTHS[0]) for _ in parts]
    best: tuple[float, float] | None = None
    for strength in STRENGTHS:
        right = total = 0
        for model, (train, held) in zip(models, parts, strict=True):
            # The last strength's weights are where the next one begins.
            model.set_params(C=strength).fit(vectors_ND[train], labels_N[train])
            right += int((model.predict(vectors_ND[held]) == labels_N[held]).sum())
            total += len(held)
        score = right / total
        if best is None or score > best[1]:
            best = (strength, score)
        elif score < best[1]:
            break
    return best


def _model(strength: float):  # type: ignore[no-untyped-def]
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=ITERATIONS, tol=TOLERANCE, warm_start=True)
