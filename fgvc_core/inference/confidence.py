"""The one rule of confidence: shares of the classes, which name is sure, and "none of these".

Every command, page and export answers by this module, or by its formula where no Python runs; the
values that the formula needs travel as :meth:`Confidence.facts`.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import logsumexp, softmax

SURE = 0.8
"""Least share of a name that is given as the answer."""

Score = Literal["probability", "logit", "energy"]
SCORES: tuple[Score, ...] = ("probability", "logit", "energy")

COLDEST, HOTTEST = 0.25, 8.0
"""Range of a temperature."""

Floats = NDArray[np.float64]


def default_score(frozen: bool, label_smoothing: float) -> Score:
    """The score that detects "none of these", by how the model was trained.

    Chosen by ``fieldmark bench unknown`` on all sets but CUB's (docs/using-a-model.md).

    Args:
        frozen: Whether only the head was trained.
        label_smoothing: Of its loss, 0 to 1.
    """
    return "energy" if frozen and label_smoothing == 0 else "probability"


def known_scores(logits_NK: Floats, score: Score, temperature: float = 1.0) -> Floats:
    """float64 (N,): the higher, the more a picture looks like one of the classes.

    ``probability`` is the largest probability (Hendrycks and Gimpel 2017,
    https://arxiv.org/abs/1610.02136), ``logit`` the largest logit (Hendrycks et al. 2022,
    https://arxiv.org/abs/1911.11132), ``energy`` the negative free energy (Liu et al. 2020,
    https://arxiv.org/abs/2010.03759). The last two do not depend on the temperature.
    """
    if score == "probability":
        return softmax(logits_NK / temperature, axis=1).max(axis=1)
    if score == "logit":
        return logits_NK.max(axis=1)
    return logsumexp(logits_NK, axis=1)


class Confidence(BaseModel):
    """How shares follow from logits, and when a name is sure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float | None = Field(
        None,
        ge=COLDEST,
        le=HOTTEST,
        description="Divisor of the logits, 0.25 to 8; None: not calibrated, the logits as they "
        "are.",
    )
    sure: float = Field(SURE, ge=0.0, le=1.0, description="Least share of a stated name, 0 to 1.")
    score: Score = Field("probability", description="Score that detects 'none of these'.")
    threshold: float | None = Field(
        None,
        allow_inf_nan=False,
        description="A picture with a lower score is of none of the classes; None: none is.",
    )

    @property
    def divisor(self) -> float:
        """The temperature, or 1."""
        return 1.0 if self.temperature is None else self.temperature

    def shares(self, logits_NK: Floats) -> Floats:
        """Probabilities (N, K) of the classes, each row summing to 1."""
        return softmax(logits_NK / self.divisor, axis=1)

    def deciding(self, logits_NK: Floats) -> tuple[Floats, ...]:
        """The probabilities (N, K) that have to reach ``sure``: all of them, for the same name.

        A temperature below 1 raises the largest share of every picture, those of other classes
        included. So a name has to hold without the calibration, too: it then names no picture
        that it would not have named before.
        """
        if self.temperature is None:
            return (self.shares(logits_NK),)
        return self.shares(logits_NK), softmax(logits_NK, axis=1)

    def sure_of_class(self, logits_NK: Floats) -> NDArray[np.bool_]:
        """bool (N,): whether the answer is a class, the one with the largest logit."""
        best_N1 = logits_NK.argmax(axis=1)[:, None]
        least_N = np.minimum.reduce(
            [np.take_along_axis(s, best_N1, axis=1)[:, 0] for s in self.deciding(logits_NK)]
        )
        return (least_N >= self.sure) & ~self.unknown(logits_NK)

    def scores(self, logits_NK: Floats) -> Floats:
        """float64 (N,): see :func:`known_scores`."""
        return known_scores(logits_NK, self.score, self.divisor)

    def unknown(self, logits_NK: Floats) -> NDArray[np.bool_]:
        """bool (N,): pictures of none of the classes."""
        if self.threshold is None:
            return np.zeros(len(logits_NK), dtype=np.bool_)
        return self.scores(logits_NK) < self.threshold

    def facts(self) -> dict[str, Any]:
        """The values for JSON."""
        return self.model_dump()
