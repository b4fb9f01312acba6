"""Turns logits into verdicts: the finest name that is sure, "not sure", or "none of these"."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.inference.calibration import Calibration
from fgvc_core.inference.confidence import Confidence
from fgvc_core.inference.taxonomy import Taxonomy

NOT_SURE = "not sure"
NONE_OF_THESE = "none of these"


@dataclass(frozen=True)
class Verdict:
    """The answer for one picture.

    Attributes:
        answer: The finest name that is sure; "not sure" or "none of these" if there is none.
        sure: Whether the answer is a name.
        level: Level of that name; empty if there is none.
        reason: Why the answer is not a class; empty if it is one.
        confidence: Share of the answer, 0 to 1; without a name, of the most probable class.
        unknown: Whether the picture looks like none of the classes.
        top: The most probable classes with their shares, best first.
        levels: The most probable name at each level with its share, from coarse to fine.
    """

    answer: str
    sure: bool
    level: str
    reason: str
    confidence: float
    unknown: bool
    top: tuple[tuple[str, float], ...]
    levels: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class Judge:
    """Turns logits into verdicts.

    Attributes:
        class_names: K names.
        taxonomy: Taxonomy of these classes.
        confidence: The rule of confidence.
        calibration: The calibration that it is from, or None.
        top_k: Number of classes that a verdict lists, at least 1.
    """

    class_names: tuple[str, ...]
    taxonomy: Taxonomy
    confidence: Confidence = field(default_factory=Confidence)
    calibration: Calibration | None = None
    top_k: int = 3

    def __call__(self, logits_NK: NDArray[np.float64]) -> list[Verdict]:
        """One verdict for each of N pictures."""
        rule = self.confidence
        shares_NK, scores_N, unknown_N = (
            rule.shares(logits_NK),
            rule.scores(logits_NK),
            rule.unknown(logits_NK),
        )
        deciding = rule.deciding(logits_NK)
        # For each level, the shares of its names and the least of the shares that decide.
        summed = []
        for at in range(len(self.taxonomy.levels)):
            sums = [self.taxonomy.summed(one_NK, at) for one_NK in deciding]
            summed.append((self.taxonomy.names(at), sums[0], np.minimum.reduce(sums)))
        best_NT = np.argsort(-shares_NK, axis=1, kind="stable")[:, : self.top_k]
        verdicts = []
        for n, best_T in enumerate(best_NT.tolist()):
            levels, held = [], []
            for level, (names, sums_NM, least_NM) in zip(self.taxonomy.levels, summed, strict=True):
                at = int(sums_NM[n].argmax())
                levels.append((level, names[at], min(float(sums_NM[n, at]), 1.0)))
                held.append(float(least_NM[n, at]))
            top = tuple((self.class_names[k], float(shares_NK[n, k])) for k in best_T)
            verdicts.append(
                self._verdict(levels, held, bool(unknown_N[n]), float(scores_N[n]), top)
            )
        return verdicts

    def facts(self) -> dict[str, Any]:
        """The rule and the levels of the names, for JSON: what an export needs to answer alike."""
        names = [list(self.taxonomy.names(at)) for at in range(len(self.taxonomy.levels))]
        return {
            **self.confidence.facts(),
            "levels": list(self.taxonomy.levels),
            "names": names,
            "groups": [
                [names[at].index(chain[at]) for chain in self.taxonomy.chains]
                for at in range(len(self.taxonomy.levels))
            ],
        }

    def _verdict(
        self,
        levels: list[tuple[str, str, float]],
        held: list[float],
        unknown: bool,
        score: float,
        top: tuple[tuple[str, float], ...],
    ) -> Verdict:
        """The verdict on one picture.

        Args:
            levels: The most probable name of each level, from coarse to fine.
            held: The least share that decides on each of them.
            unknown: Whether the picture looks like none of the classes.
            score: How much it looks like one of them.
            top: The most probable classes.
        """
        largest = levels[-1][2]
        if unknown:
            return Verdict(
                NONE_OF_THESE, False, "", self._unlike(score), largest, True, top, tuple(levels)
            )
        bar = self.confidence.sure
        doubt = self._doubt(levels[-1], held[-1])
        for (level, name, share), least in zip(reversed(levels), reversed(held), strict=True):
            if least >= bar:
                reason = "" if level == levels[-1][0] else f"{levels[-1][0]} open: {doubt}"
                return Verdict(name, True, level, reason, share, False, top, tuple(levels))
        return Verdict(NOT_SURE, False, "", doubt, largest, False, top, tuple(levels))

    def _doubt(self, finest: tuple[str, str, float], least: float) -> str:
        bar = self.confidence.sure
        if finest[2] >= bar > least:
            return f"largest share {_cut(least)} without the calibration, below {_plain(bar)}"
        return f"largest share {_cut(finest[2])} below {_plain(bar)}"

    def _unlike(self, score: float) -> str:
        threshold = self.confidence.threshold
        assert threshold is not None
        words = {
            "probability": "largest share",
            "logit": "largest logit",
            "energy": "energy of the logits",
        }[self.confidence.score]
        return f"unlike the training pictures: {words} {_cut(score)} below {_plain(threshold)}"


def _cut(value: float) -> str:
    """Two decimals, cut off: 0.799 is below 0.80 in words, too."""
    return f"{math.floor(100 * value + 1e-9) / 100:.2f}"


def _plain(value: float) -> str:
    """A bar with two decimals, or more where it has more."""
    return f"{value:.2f}" if round(value, 2) == value else f"{value:.4g}"
