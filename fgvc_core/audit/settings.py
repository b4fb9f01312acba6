"""Settings of ``[audit]``: how strongly a site attacks its own mechanism.

Nothing here changes the mechanism. The faults that an audit must detect (no noise, no clipping, too
high a sampling rate) are introduced by tests only; no recipe can ask for them.
"""

from typing import Annotated, Literal

from pydantic import Field

from fgvc_core.configuration import Settings


class AuditSettings(Settings):
    """Settings of one audit of a site's mechanism; federated runs do not read them."""

    canaries: int = Field(
        2000,
        ge=100,
        le=100_000,
        description="Planted units, each in the data with probability 1/2, 100 to 100,000. The "
        "more, the higher an epsilon can be proven: at delta 1e-5 at most 5.2 with 1,000 and 6.5 "
        "with 10,000, were the noise off. A model without room for so many gets as many as it has.",
    )
    confidence: float = Field(
        0.95,
        ge=0.5,
        lt=1.0,
        description="Probability with which the lower bounds hold, all together, 0.5 to 1.",
    )
    guesses: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(
        (0.05, 0.1, 0.2, 0.9),
        min_length=1,
        max_length=16,
        description="Shares of the canaries that the attacker guesses, the surest first, each 0 "
        "to 1; the best bound counts, and the confidence pays for having tried them all.",
    )
    kind: Literal["spread", "coordinate"] = Field(
        "spread",
        description="What a planted gradient looks like: spread over the whole model, or on one "
        "coordinate. Heads on cached features get planted features instead.",
    )
    norm: float = Field(
        10.0,
        ge=1.0,
        le=1e6,
        description="Norm of a planted gradient, in clipping norms, at least 1. Clipped, it is 1 "
        "whatever it was; above 1 it shows whether clipping happens at all.",
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="Seed of who is planted and how, so that an audit can be repeated; without it "
        "the operating system draws. Sampling and noise always come from the operating system.",
    )
