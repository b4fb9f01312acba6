"""Settings of ``[federation]``: what coordinator and sites agree on before round 1."""

from typing import Literal

from pydantic import Field

from fgvc_core.configuration import Settings


class FederationSettings(Settings):
    """Rounds, cohorts, and when to stop."""

    strategy: Literal["fedavg", "fedprox"] = Field(
        "fedavg",
        description="fedavg (McMahan et al. 2017, https://arxiv.org/abs/1602.05629) or fedprox "
        "(Li et al. 2020, https://arxiv.org/abs/1812.06127).",
    )
    rounds: int = Field(
        10,
        ge=0,
        le=100_000,
        description="Most rounds of training; 0: only what train.start gives.",
    )
    fraction: float = Field(
        1.0, gt=0.0, le=1.0, description="Share of the sites drawn for a round's cohort, 0 to 1."
    )
    quorum: float = Field(
        0.5,
        gt=0.0,
        le=1.0,
        description="Share of a cohort whose sound replies a round needs to count, 0 to 1.",
    )
    deadline_s: float = Field(
        3600.0, gt=0.0, description="Seconds after which a round closes with what has arrived."
    )
    patience: int = Field(
        0,
        ge=0,
        description="Stop after so many rounds without a better validation score; 0: never.",
    )
    proximal_mu: float = Field(
        0.01, ge=0.0, description="fedprox: weight of the pull towards the received model."
    )
