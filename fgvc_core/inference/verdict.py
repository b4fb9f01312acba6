"""Turns logits into verdicts: the finest name that is certain enough, or none of the classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from fgvc_core.inference.calibration import Calibration, known_scores
from fgvc_core.inference.taxonomy import Taxonomy

NONE_OF_THESE = "none of these"


@dataclass(frozen=True)
class Verdict:
    """The answer for one picture.

    Attributes:
        answer: The finest name with enough probability; otherwise the most probable class.
        level: Level of that name; empty if no name has enough probability.
        confidence: Probability of the answer, 0 to 1.
        unknown: Whether the picture looks like none of the classes.
        top: The most probable classes with their probabilities, best first.
        levels: The most probable name at each level with its probability, from coarse to fine.
    """

    answer: str
    level: str
    confidence: float
    unknown: bool
    top: tuple[tuple[str, float], ...]
    levels: tuple[tuple[str, str, float], ...]

    @property
    def told(self) -> str:
        """The answer, or "none of these"."""
        return NONE_OF_THESE if self.unknown else self.answer


@dataclass(frozen=True)
class Judge:
    """Turns logits into verdicts.

    Attributes:
        class_names: K names.
        taxonomy: Taxonomy of these classes.
        calibration: The model's calibration, or None.
        top_k: Number of classes that a verdict lists, at least 1.
        sure: Least probability of a stated name, 0 to 1.
        unknown_below: A picture is of none of the classes if its largest probability is lower;
            None: use the calibration's threshold, or without calibration, never.
    """

    class_names: tuple[str, ...]
    taxonomy: Taxonomy
    calibration: Calibration | None
    top_k: int = 3
    sure: float = 0.8
    unknown_below: float | None = None

    @property
    def temperature(self) -> float:
        """Divisor of the logits."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    def __call__(self, logits_NK: NDArray[np.float64]) -> list[Verdict]:
        """One verdict for each of N pictures."""
        probabilities_NK = softmax(logits_NK / self.temperature, axis=1)
        unknown_N = self._unknown(logits_NK, probabilities_NK)
        summed = [
            (level, self.taxonomy.names(at), self.taxonomy.summed(probabilities_NK, at))
            for at, level in enumerate(self.taxonomy.levels)
        ]
        best_NT = np.argsort(-probabilities_NK, axis=1, kind="stable")[:, : self.top_k]
        verdicts = []
        for n, best_T in enumerate(best_NT.tolist()):
            levels = tuple(_best(level, names, sums_NM[n]) for level, names, sums_NM in summed)
            answer, level, confidence = self._finest(levels)
            top = tuple((self.class_names[k], float(probabilities_NK[n, k])) for k in best_T)
            verdicts.append(Verdict(answer, level, confidence, bool(unknown_N[n]), top, levels))
        return verdicts

    def _finest(self, levels: Sequence[tuple[str, str, float]]) -> tuple[str, str, float]:
        for level, name, probability in reversed(levels):
            if probability >= self.sure:
                return name, level, probability
        return levels[-1][1], "", levels[-1][2]

    def _unknown(
        self, logits_NK: NDArray[np.float64], probabilities_NK: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        if self.unknown_below is not None:
            return probabilities_NK.max(axis=1) < self.unknown_below
        if self.calibration is None:
            return np.zeros(len(logits_NK), dtype=np.bool_)
        scores_N = known_scores(logits_NK, self.calibration.score, self.temperature)
        return scores_N < self.calibration.threshold


def _best(level: str, names: Sequence[str], sums_M: NDArray[np.float64]) -> tuple[str, str, float]:
    at = int(sums_M.argmax())
    return level, names[at], min(float(sums_M[at]), 1.0)
