"""Open-set recognition: how well a score separates pictures of none of the classes."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from fgvc_core.inference.calibrating import FALSE_REFUSALS
from fgvc_core.inference.calibration import Calibration
from fgvc_core.inference.confidence import SCORES, Score, known_scores


@dataclass(frozen=True)
class Separation:
    """How well one score separates.

    Attributes:
        auroc: Probability that a picture of a class scores higher than one of none, 0 to 1; ties
            count half.
        let_in: Share of pictures of none of the classes that pass a threshold that 95 % of the
            others pass.
    """

    auroc: float
    let_in: float


@dataclass(frozen=True)
class OpenSet:
    """Measurements on held-out classes.

    Attributes:
        classes: The held-out classes.
        known: Number of pictures of the model's classes.
        unknown: Number of pictures of held-out classes.
        scores: Score -> its separation.
        used: The score that the checkpoint's threshold is on, or would be.
        kept: Share of the known pictures above the checkpoint's threshold; None without one.
        refused: Share of the unknown pictures below it ("none of these"); None without one.
    """

    classes: tuple[str, ...]
    known: int
    unknown: int
    scores: dict[str, Separation]
    used: str
    kept: float | None
    refused: float | None

    @property
    def best(self) -> str:
        """The score with the highest AUROC."""
        return max(self.scores, key=lambda name: self.scores[name].auroc)

    def as_json(self) -> dict[str, Any]:
        """Values for JSON."""
        return {**asdict(self), "best": self.best}


def open_set(
    known_NK: NDArray[np.float64],
    unknown_MK: NDArray[np.float64],
    classes: tuple[str, ...],
    calibration: Calibration | None,
    default: Score = "probability",
) -> OpenSet:
    """How well each score separates known from unknown pictures.

    Args:
        known_NK: Logits of pictures of the model's classes.
        unknown_MK: Logits of pictures of held-out classes.
        classes: The held-out classes.
        calibration: The checkpoint's calibration; its threshold is measured too.
        default: The score that a calibration would use.
    """
    temperature = 1.0 if calibration is None else calibration.divisor
    scores: dict[str, Separation] = {}
    for score in SCORES:
        known_N, unknown_M = (known_scores(x, score, temperature) for x in (known_NK, unknown_MK))
        bar = float(np.quantile(known_N, FALSE_REFUSALS, method="lower"))
        scores[score] = Separation(auroc(known_N, unknown_M), float((unknown_M >= bar).mean()))
    used = default if calibration is None else calibration.score
    kept = refused = None
    if calibration is not None and calibration.threshold is not None:
        known_N, unknown_M = (
            known_scores(x, calibration.score, temperature) for x in (known_NK, unknown_MK)
        )
        kept = float((known_N >= calibration.threshold).mean())
        refused = float((unknown_M < calibration.threshold).mean())
    return OpenSet(classes, len(known_NK), len(unknown_MK), scores, used, kept, refused)


def auroc(higher_N: NDArray[np.float64], lower_M: NDArray[np.float64]) -> float:
    """Area under the ROC curve, from ranks (Mann and Whitney 1947); ties count half."""
    ranks = rankdata(np.concatenate([higher_N, lower_M]))
    count = len(higher_N)
    wins = ranks[:count].sum() - count * (count + 1) / 2
    return float(wins / (count * len(lower_M)))
