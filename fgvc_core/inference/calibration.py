"""Calibration of a model: one temperature, and a threshold for "none of these".

Temperature scaling and the expected calibration error: Guo et al. 2017, sections 2 and 4.2,
https://arxiv.org/abs/1706.04599. Both are fitted on pictures that the model has not learned from,
and kept beside the checkpoint in ``<name>.calibration.json`` with the checkpoint's digest.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax

from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.files import replace_text

BINS = 15
"""Number of bins of the expected calibration error, as in the paper."""

KEPT = 0.95
"""Share of the calibration pictures that are not called "none of these"."""

Score = Literal["probability", "logit", "energy"]
SCORES: tuple[Score, ...] = ("probability", "logit", "energy")

_COLDEST, _HOTTEST = 0.02, 50.0


class Calibration(BaseModel):
    """A fitted calibration.

    Attributes:
        checkpoint: SHA-256 (hex) of the checkpoint's file.
        temperature: Divisor of the logits.
        examples: Number of pictures it was fitted on.
        on: Description of these pictures.
        ece_before: Expected calibration error on them at temperature 1, 0 to 1.
        ece_after: The same at the fitted temperature (on the pictures it was fitted on).
        score: Score that detects pictures of none of the classes; see :func:`known_scores`.
        threshold: A picture with a lower score is of none of the classes.
        kept: Share of the calibration pictures at or above the threshold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(1, ge=1, le=1)
    checkpoint: str = Field(pattern=r"^[0-9a-f]{64}$")
    temperature: float = Field(gt=0.0, allow_inf_nan=False)
    examples: int = Field(ge=1)
    on: str
    ece_before: float = Field(ge=0.0, le=1.0)
    ece_after: float = Field(ge=0.0, le=1.0)
    score: Score
    threshold: float = Field(allow_inf_nan=False)
    kept: float = Field(gt=0.0, le=1.0)


@dataclass(frozen=True)
class Reliability:
    """Accuracy by confidence, in M bins of equal width.

    Attributes:
        count_M: int64, number of answers in each bin.
        confidence_M: float64, their mean confidence; 0 in an empty bin.
        accuracy_M: float64, the share of correct answers; 0 in an empty bin.
    """

    count_M: NDArray[np.int64]
    confidence_M: NDArray[np.float64]
    accuracy_M: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1."""
        gap_M = np.abs(self.accuracy_M - self.confidence_M)
        return float((self.count_M * gap_M).sum() / max(int(self.count_M.sum()), 1))


def reliability(
    logits_NK: NDArray[np.float64], labels_N: NDArray[np.int64], temperature: float = 1.0
) -> Reliability:
    """Accuracy of the answers at each level of confidence."""
    probabilities_NK = softmax(logits_NK / temperature, axis=1)
    confidence_N = probabilities_NK.max(axis=1)
    right_N = (logits_NK.argmax(axis=1) == labels_N).astype(np.float64)
    bin_N = np.minimum((confidence_N * BINS).astype(np.int64), BINS - 1)
    count_M = np.bincount(bin_N, minlength=BINS)
    some_M = np.maximum(count_M, 1)
    return Reliability(
        count_M,
        np.bincount(bin_N, confidence_N, BINS) / some_M,
        np.bincount(bin_N, right_N, BINS) / some_M,
    )


def fit_temperature(logits_NK: NDArray[np.float64], labels_N: NDArray[np.int64]) -> float:
    """The temperature with the lowest cross-entropy, 0.02 to 50.

    Raises:
        DataError: if there are no pictures.
    """
    if not len(labels_N):
        raise DataError(
            "There is no picture to fit a temperature on.",
            why="Confidence cannot be calibrated on nothing.",
            remedy="Set data.val_fraction above 0, or name data of your own with --data.",
        )
    at = np.arange(len(labels_N))

    def loss(log_temperature: float) -> float:
        log_NK = log_softmax(logits_NK / np.exp(log_temperature), axis=1)
        return float(-log_NK[at, labels_N].mean())

    bounds = (np.log(_COLDEST), np.log(_HOTTEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def known_scores(
    logits_NK: NDArray[np.float64], score: Score, temperature: float = 1.0
) -> NDArray[np.float64]:
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


def calibrate(
    logits_NK: NDArray[np.float64],
    labels_N: NDArray[np.int64],
    *,
    checkpoint: str,
    on: str,
    score: Score = "probability",
) -> Calibration:
    """Fit temperature and threshold.

    Args:
        logits_NK: Logits of pictures that the model has not learned from.
        labels_N: Their classes.
        checkpoint: Digest of the checkpoint.
        on: Description of the pictures.
        score: Score that detects "none of these". On the demo without three of its classes, the
            AUROC was 0.943 for ``probability``, 0.776 for ``logit`` and 0.696 for ``energy``: label
            smoothing compresses logits (docs/using-a-model.md).

    Raises:
        DataError: if there are no pictures.
    """
    temperature = fit_temperature(logits_NK, labels_N)
    scores_N = known_scores(logits_NK, score, temperature)
    threshold = float(np.quantile(scores_N, 1 - KEPT, method="lower"))
    return Calibration(
        checkpoint=checkpoint,
        temperature=temperature,
        examples=len(labels_N),
        on=on,
        ece_before=reliability(logits_NK, labels_N).ece,
        ece_after=reliability(logits_NK, labels_N, temperature).ece,
        score=score,
        threshold=threshold,
        kept=float((scores_N >= threshold).mean()),
    )


def sidecar(checkpoint: Path) -> Path:
    """Path of a checkpoint's calibration."""
    return checkpoint.with_name(f"{checkpoint.stem}.calibration.json")


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_calibration(calibration: Calibration, checkpoint: Path) -> Path:
    """Write a calibration beside its checkpoint, in place of an older one.

    Raises:
        ConfigurationError: if the file cannot be written.
    """
    path = sidecar(checkpoint)
    try:
        replace_text(path, calibration.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise ConfigurationError(
            f"'{path}' cannot be written: {error.strerror}.",
            why="A calibration is kept beside its checkpoint.",
            remedy="Copy the checkpoint to a folder that you may write to.",
        ) from None
    return path


def read_calibration(checkpoint: Path) -> Calibration | None:
    """A checkpoint's calibration, or None.

    Raises:
        DataError: if it is damaged, or was fitted for another checkpoint with this name.
    """
    path = sidecar(checkpoint)
    try:
        found = Calibration.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise _of_no_use(path, f"it cannot be read ({str(error).splitlines()[0]})") from None
    if found.checkpoint != file_digest(checkpoint):
        raise _of_no_use(path, "it was fitted for another checkpoint")
    return found


def _of_no_use(path: Path, what: str) -> DataError:
    return DataError(
        f"The calibration '{path}' is of no use: {what}.",
        why="Confidences would look calibrated, and not be.",
        remedy="Remove it, or fit it anew with: fieldmark evaluate CHECKPOINT --calibrate",
    )
