"""Pictures of none of the classes: how well a score tells them from the others."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from fgvc_core.inference.calibration import KEPT, SCORES, Calibration, known_scores


@dataclass(frozen=True)
class Separation:
    """One score's.

    Attributes:
        auroc: Probability that a picture of a class has a higher score than one of none, ties
            counted half, 0 to 1.
        let_in: Share of pictures of none that pass where 95 % of those of a class do.
    """

    auroc: float
    let_in: float


@dataclass(frozen=True)
class OpenSet:
    """What was measured on held-out classes.

    Attributes:
        classes: The held-out classes.
        known: How many pictures of the model's classes.
        unknown: How many of held-out ones.
        scores: Score -> its separation.
        kept: Share of the known ones that the checkpoint's threshold keeps; None without one.
        refused: Share of the unknown ones that it calls "none of these"; None without one.
    """

    classes: tuple[str, ...]
    known: int
    unknown: int
    scores: dict[str, Separation]
    kept: float | None
    refused: float | None

    @property
    def best(self) -> str:
        """The score with the highest AUROC."""
        return max(self.scores, key=lambda name: self.scores[name].auroc)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "best": self.best}


def open_set(
    known_NK: NDArray[np.float64],
    unknown_MK: NDArray[np.float64],
    classes: tuple[str, ...],
    calibration: Calibration | None,
) -> OpenSet:
    """How well each score tells known from unknown.

    Args:
        known_NK: Logits of pictures of the model's classes.
        unknown_MK: Logits of pictures of held-out ones.
        classes: The held-out ones.
        calibration: The checkpoint's, whose threshold is tried too.
    """
    temperature = 1.0 if calibration is None else calibration.temperature
    scores: dict[str, Separation] = {}
    for score in SCORES:
        known_N, unknown_M = (known_scores(x, score, temperature) for x in (known_NK, unknown_MK))
        bar = float(np.quantile(known_N, 1 - KEPT, method="lower"))
        scores[score] = Separation(auroc(known_N, unknown_M), float((unknown_M >= bar).mean()))
    kept = refused = None
    if calibration is not None:
        known_N, unknown_M = (
            known_scores(x, calibration.score, temperature) for x in (known_NK, unknown_MK)
        )
        kept = float((known_N >= calibration.threshold).mean())
        refused = float((unknown_M < calibration.threshold).mean())
    return OpenSet(classes, len(known_NK), len(unknown_MK), scores, kept, refused)


def auroc(higher_N: NDArray[np.float64], lower_M: NDArray[np.float64]) -> float:
    """Area under the ROC curve, from ranks (Mann and Whitney 1947), ties counted half."""
    ranks = rankdata(np.concatenate([higher_N, lower_M]))
    count = len(higher_N)
    wins = ranks[:count].sum() - count * (count + 1) / 2
    return float(wins / (count * len(lower_M)))
