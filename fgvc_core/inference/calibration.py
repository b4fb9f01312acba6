"""The calibration of a checkpoint, kept beside it in ``<name>.calibration.json`` with its digest.

How it is fitted is in :mod:`fgvc_core.inference.calibrating`.
"""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.files import replace_text
from fgvc_core.inference.confidence import COLDEST, HOTTEST, SURE, Confidence, Score

FORMAT = 2


class HeldOut(BaseModel):
    """How a temperature did on the folds that it was not fitted on.

    Attributes:
        nll_before: Mean negative log likelihood per picture at temperature 1, in nats.
        nll_after: The same at the temperatures of the other folds.
        ece_before: Expected calibration error at temperature 1, 0 to 1.
        ece_after: The same at the temperatures of the other folds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nll_before: float = Field(ge=0.0, allow_inf_nan=False)
    nll_after: float = Field(ge=0.0, allow_inf_nan=False)
    ece_before: float = Field(ge=0.0, le=1.0)
    ece_after: float = Field(ge=0.0, le=1.0)


class Calibration(BaseModel):
    """What was fitted for a checkpoint.

    Attributes:
        checkpoint: SHA-256 (hex) of the checkpoint's file.
        examples: Number of pictures that it was fitted on.
        subjects: Number of their subjects.
        errors: Number of them that the model gets wrong.
        on: Description of these pictures.
        temperature: Divisor of the logits; None: the shares stay as they were.
        why_not: Why there is no temperature; empty if there is one.
        held_out: The temperature on held-out folds; None if there were too few pictures.
        score: Score that detects pictures of none of the classes.
        threshold: A picture with a lower score is of none of the classes; None: too few pictures.
        false_refusals: Share of pictures of the classes that the threshold was fitted to refuse.
        refused: Share of them that it refused on held-out folds; None without a threshold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(FORMAT, ge=FORMAT, le=FORMAT)
    checkpoint: str = Field(pattern=r"^[0-9a-f]{64}$")
    examples: int = Field(ge=1)
    subjects: int = Field(ge=1)
    errors: int = Field(ge=0)
    on: str
    temperature: float | None = Field(None, ge=COLDEST, le=HOTTEST)
    why_not: str = ""
    held_out: HeldOut | None = None
    score: Score
    threshold: float | None = Field(None, allow_inf_nan=False)
    false_refusals: float = Field(gt=0.0, lt=1.0)
    refused: float | None = Field(None, ge=0.0, le=1.0)

    @property
    def divisor(self) -> float:
        """The temperature, or 1."""
        return 1.0 if self.temperature is None else self.temperature

    @property
    def told(self) -> str:
        """One sentence about the shares."""
        if self.temperature is None:
            return f"Confidences are uncalibrated: {self.why_not}."
        return (
            f"Confidences are calibrated: temperature {self.temperature:.3g}, fitted on "
            f"{self.examples:,} pictures ({self.on})."
        )

    @property
    def of_use(self) -> bool:
        """Whether it says anything."""
        return self.temperature is not None or self.threshold is not None


def confidence_of(
    calibration: Calibration | None, sure: float = SURE, unknown_below: float | None = None
) -> Confidence:
    """The rule of confidence of a checkpoint.

    Args:
        calibration: Its calibration, or None.
        sure: Least share of a stated name, 0 to 1.
        unknown_below: A picture is of none of the classes if its largest share is lower; None:
            as the calibration says.
    """
    temperature = None if calibration is None else calibration.temperature
    if unknown_below is not None:
        return Confidence(
            temperature=temperature, sure=sure, score="probability", threshold=unknown_below
        )
    if calibration is None:
        return Confidence(sure=sure)
    return Confidence(
        temperature=temperature,
        sure=sure,
        score=calibration.score,
        threshold=calibration.threshold,
    )


UNCALIBRATED = "Confidences are uncalibrated: no temperature was fitted for this checkpoint."


def told_of(calibration: Calibration | None) -> str:
    """One sentence about the shares of a model with this calibration, or none."""
    return UNCALIBRATED if calibration is None else calibration.told


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
        DataError: if it is damaged, of an earlier format, or was fitted for another checkpoint
            with this name.
    """
    path = sidecar(checkpoint)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _of_no_use(path, f"it cannot be read ({error.strerror})") from None
    try:
        found = Calibration.model_validate_json(content)
    except ValidationError as error:
        if b'"format": 1,' in content:
            what = "an earlier version fitted it, without held-out pictures"
        else:
            what = f"it cannot be read ({str(error).splitlines()[0]})"
        raise _of_no_use(path, what) from None
    if found.checkpoint != file_digest(checkpoint):
        raise _of_no_use(path, "it was fitted for another checkpoint")
    return found


def _of_no_use(path: Path, what: str) -> DataError:
    return DataError(
        f"The calibration '{path}' is of no use: {what}.",
        why="Confidences would look calibrated, and not be.",
        remedy="Remove it, or fit it again with: fieldmark evaluate CHECKPOINT --calibrate",
    )
