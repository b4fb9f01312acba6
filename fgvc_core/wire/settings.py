"""Settings of ``[wire]``: encoding and largest size of updates and models."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fgvc_core.configuration import Settings

Precision = Literal["float32", "float16", "bfloat16", "int8"]
"""Encoding of an update's values."""

Down = Literal["float32", "float16", "bfloat16"]
"""Encoding of the model's values for the sites."""


class WireSettings(Settings):
    """How updates and models are encoded, and how large they may be."""

    precision: Precision = Field(
        "float32",
        description="How the values of an update travel: float32, float16, bfloat16, or int8 with "
        "one scale a channel.",
    )
    delta: bool = Field(
        False,
        description="Whether an update travels as its difference from the model that was received: "
        "smaller numbers, which lose less in few bits.",
    )
    top_k: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Share of each tensor's values that travels, the largest ones, 0 to 1; what is "
        "left out is added to the next update (error feedback). Needs delta. 0: all travel.",
    )
    down: Down = Field(
        "float32",
        description="How the values of the model travel to the sites: float32, float16 or "
        "bfloat16. The coordinator keeps float32.",
    )
    max_update_mb: float = Field(
        1024.0, gt=0.0, description="Largest update that either side accepts, in MB (1e6 bytes)."
    )
    max_round_mb: float = Field(
        0.0,
        ge=0.0,
        description="Most that the tensors of one round may weigh, both ways and over the whole "
        "cohort, in MB (1e6 bytes); a run that would need more is not begun. 0: no bound.",
    )

    @model_validator(mode="after")
    def _sparse_needs_delta(self) -> Self:
        if self.top_k and not self.delta:
            raise ValueError(
                "top_k needs delta = true: the rest of a whole model cannot be left out"
            )
        return self

    @property
    def plain(self) -> bool:
        """Whether updates are sent as whole float32 tensors."""
        return self.precision == "float32" and not self.delta
