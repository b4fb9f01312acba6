"""Settings of ``[federation]``: rounds, aggregation, screening of replies, and stopping."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fgvc_core.components import STRATEGIES
from fgvc_core.configuration import text
from fgvc_core.registry import OpenSettings

StrategyName = Annotated[str, AfterValidator(STRATEGIES.check)]
"""Name of a strategy that is installed here."""

ROBUST = frozenset(
    {"fedmedian", "trimmed-mean", "krum", "multi-krum", "geometric-median", "least-trimmed"}
)
"""Strategies that bound the influence of hostile sites on a round."""


class FederationSettings(OpenSettings):
    """Rounds, cohorts, treatment of replies, and when to stop."""

    chosen = {"strategy": STRATEGIES}  # noqa: RUF012

    strategy: StrategyName = Field(
        "fedavg",
        description="Means: fedavg (McMahan et al. 2017, https://arxiv.org/abs/1602.05629), "
        "fedprox (Li et al. 2020, https://arxiv.org/abs/1812.06127), fednova (Wang et al. 2020, "
        "https://arxiv.org/abs/2007.07481), scaffold (Karimireddy et al. 2020, "
        "https://arxiv.org/abs/1910.06378). An optimizer after the mean: fedavgm (Hsu et al. "
        "2019, https://arxiv.org/abs/1909.06335), fedadam, fedyogi, fedadagrad (Reddi et al. "
        "2021, https://arxiv.org/abs/2003.00295). Against hostile sites: fedmedian, trimmed-mean "
        "(Yin et al. 2018, https://arxiv.org/abs/1803.01498), krum, multi-krum (Blanchard et al. "
        "2017, https://arxiv.org/abs/1703.02757), geometric-median (Pillutla et al. 2022, "
        "https://arxiv.org/abs/1912.13445), least-trimmed (the mean of those that lie closest "
        "together in each principal direction of the sites' differences: the one that holds "
        "against backdoors; docs/faults.md). Or one that another distribution has registered; its "
        "settings are the table [federation.NAME].",
        json_schema_extra=text("word"),
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
        description="Share of the sites that were asked to take part (of federation.fraction of "
        "them in each round) whose sound replies a round needs to count, 0 to 1. Sites that are "
        "away, or refuse, were asked, too.",
    )
    sites: tuple[str, ...] = Field(
        (),
        description="Names of the registered sites that are asked to take part in a deployed run; "
        "empty: all that are registered, those registered later included.",
        json_schema_extra=text("word"),
    )
    expected_dropout: float = Field(
        0.0,
        ge=0.0,
        le=0.9,
        description="Share of a cohort that is expected not to answer, 0 to 0.9; correspondingly "
        "more sites are drawn.",
    )
    deadline_s: float = Field(
        3600.0, gt=0.0, description="Seconds after which a round closes with what has arrived."
    )
    late: Literal["drop", "mix"] = Field(
        "drop",
        description="What becomes of a reply that arrives after its round: drop (recorded), or "
        "mix its update into the next round with weight / sqrt(1 + rounds late) (Nguyen et al. "
        "2022, https://arxiv.org/abs/2106.06639).",
    )
    keep_every: int = Field(
        0, ge=0, description="Also keep every n-th round's checkpoint; 0: only last and best."
    )
    patience: int = Field(
        0,
        ge=0,
        description="Stop after this many rounds without a better validation score; 0: never.",
    )
    proximal_mu: float = Field(
        0.01, ge=0.0, description="fedprox: weight of the pull towards the received model."
    )
    server_lr: float | None = Field(
        None,
        gt=0.0,
        le=100.0,
        description="fedavgm, fedadam, fedyogi, fedadagrad: the optimiser's learning rate at the "
        "server. Without it Flower's own: 1, 0.1, 0.01, 0.1.",
    )
    server_momentum: float = Field(0.9, ge=0.0, lt=1.0, description="fedavgm: momentum, 0 to 1.")
    server_beta1: float = Field(
        0.9, ge=0.0, lt=1.0, description="fedadam, fedyogi: decay of the first moment, 0 to 1."
    )
    server_beta2: float = Field(
        0.99, ge=0.0, lt=1.0, description="fedadam, fedyogi: decay of the second moment, 0 to 1."
    )
    server_tau: float = Field(
        1e-3,
        gt=0.0,
        description="fedadam, fedyogi, fedadagrad: what keeps the divisor from zero.",
    )
    byzantine_share: float = Field(
        0.2,
        ge=0.0,
        lt=0.5,
        description="trimmed-mean, krum, multi-krum, least-trimmed, mix_nearest: share of the "
        "sites that may be hostile, 0 to 0.5. This share of a round's replies, "
        "rounded down, less the sites whose last reply was refused, is guarded against.",
    )
    mix_nearest: bool = Field(
        False,
        description="Against hostile sites where honest ones differ: before fedmedian, "
        "trimmed-mean, krum, multi-krum, geometric-median or least-trimmed each reply becomes the "
        "mean of those nearest to it, all but byzantine_share of them (Allouah et al. 2023, "
        "https://arxiv.org/abs/2302.01772).",
    )
    spill_mb: float = Field(
        256.0,
        ge=1.0,
        le=1e6,
        description="Rules that need every reply keep them in a file and work block by block in "
        "at most this much memory, in MB (1e6 bytes).",
    )
    screening: bool = Field(
        True,
        description="Check that each update is finite, and compare its length and direction with "
        "those of earlier rounds. Can be turned off in a [scenario] alone.",
    )
    max_rms: float = Field(
        10.0,
        gt=0.0,
        description="Largest root mean square of an update's values (received minus sent), in "
        "any round: the only bound on its length in round 1.",
    )
    max_norm_ratio: float = Field(
        8.0,
        gt=1.0,
        description="Largest norm of an update, as a multiple of the median of the last rounds' "
        "accepted ones; norms are divided by the round's mean learning rate.",
    )
    min_norm_ratio: float = Field(
        1e-3,
        ge=0.0,
        lt=1.0,
        description="Smallest norm of an update, as a share of that median, 0 to 1: who sends "
        "back what was sent has not taken part.",
    )
    direction_spread: float = Field(
        6.0,
        ge=0.0,
        description="An update that points against the model's last movement is refused if its "
        "cosine is this many spreads (1.48 median deviations) below the last rounds' median; 0: "
        "never.",
    )
    max_weight: int = Field(
        1_000_000,
        ge=1,
        le=10_000_000,
        description="Most examples that a site may claim to have: about the largest site's.",
    )
    max_weight_ratio: float = Field(
        20.0,
        gt=1.0,
        description="Most examples that a site may claim, as a multiple of the median of the last "
        "rounds' accepted claims; under privacy.method = 'class-sums' most units, as a multiple "
        "of the median declared.",
    )
    max_weight_share: float = Field(
        0.5,
        ge=0.5,
        le=1.0,
        description="Most of a round's weight that one site has, its late replies included, 0.5 "
        "to 1; what it claims beyond weighs nothing. 1: no bound, as in a federation of two sites.",
    )
    set_aside_after: int = Field(
        3,
        ge=0,
        description="A site whose replies were refused as unsound this many times in a row is not "
        "asked again in this run; 0: never.",
    )
    local: tuple[str, ...] = Field(
        (),
        description="Names (patterns as in fnmatch) of tensors that stay at their site and are "
        "averaged with nobody's, for instance ['head.*'] or ['*norm*', '*.bn*'].",
        strict=False,
        json_schema_extra=text("word"),
    )

    @model_validator(mode="after")
    def _late_fits(self) -> Self:
        if self.late == "mix" and (self.strategy in ("scaffold", "fednova") or self.local):
            raise ValueError(
                "late = 'mix' does not go with scaffold, fednova or local tensors: what a site "
                "keeps follows rounds, and a late reply belongs to none"
            )
        return self
