"""External validation: what a kit asks of an outside site, and what the site answers.

A kit carries a model and a question, never code. The answer carries figures alone, signed
by the site; under differential privacy these are two noisy counts that its ledger paid for.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fgvc_core.protocol.messages import Body, Reply
from fgvc_core.protocol.ranges import ClassNames, Count, Loss, Share, Tensors
from fgvc_core.toml_text import MAX_CHARACTERS

KIT_NAME = r"^kit-[0-9a-f]{16}$"


class KitPrivacy(BaseModel):
    """The differential privacy that a kit offers to sites whose policy wants some."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    epsilon: float = Field(gt=0.0, le=100.0, allow_inf_nan=False)
    delta: float = Field(gt=0.0, le=1e-2, allow_inf_nan=False)
    unit: Literal["image", "subject"]


class KitBody(Body):
    """What a kit says; its signature covers all of it, and with it every tensor."""

    format: int = Field(1, ge=1, le=1)
    kit: str = Field(pattern=KIT_NAME, description="Its name, drawn when it was made.")
    made: str = Field(max_length=40, description="When, UTC.")
    version: str = Field(max_length=64, description="Fieldmark's where it was made.")
    name: str = Field(max_length=200, description="The recipe's name.")
    recipe: str = Field(max_length=MAX_CHARACTERS, description="The resolved recipe (TOML).")
    class_names: ClassNames = Field(min_length=1)
    temperature: float | None = Field(
        None, gt=0.0, le=1e6, allow_inf_nan=False, description="Of the calibration, if any."
    )
    frozen: str = Field(
        "", max_length=64, description="SHA-256 of the frozen part, which does not go along."
    )
    privacy: KitPrivacy
    issuer: str = Field(max_length=1000, description="Public key of who made the kit.")
    tensors: Tensors = Field(default_factory=dict)


class Interval(BaseModel):
    """A figure between 0 and 1 with its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    value: Share
    low: Share
    high: Share


class ClassFigures(BaseModel):
    """One class, where the site's policy lets it out."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    examples: Count
    precision: Share
    recall: Share
    f1: Share


class Figures(BaseModel):
    """What the model did at the outside site, as the site states it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    examples: Count
    subjects: Count
    top1: Interval
    top5: Share
    macro_precision: Share
    macro_recall: Share
    macro_f1: Interval
    ece: Share
    loss: Loss
    classes: dict[Annotated[str, Field(max_length=500)], ClassFigures] | None = Field(
        None, max_length=100_000
    )


class ValidationReply(Reply):
    """An outside site's answer to a kit: a reply whose run is the kit's name."""

    kit_digest: str = Field(
        min_length=64, max_length=64, description="SHA-256 of the kit's signed body."
    )
    figures: Figures | None = Field(None, description="Where no privacy is asked for.")

    @property
    def extent(self) -> str:
        """What it holds: per-class, overall, noisy-counts or nothing."""
        if self.figures is not None:
            return "overall" if self.figures.classes is None else "per-class"
        return "nothing" if self.noisy_scores is None else "noisy-counts"
