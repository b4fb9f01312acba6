"""Settings of ``[scenario]``: faults and attacks in a simulated federation.

Only simulations accept them: coordinator and sites of a real federation refuse the recipe.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from fgvc_core.configuration import Settings, text
from fgvc_core.protocol.settings import StrategyName

Attack = Literal[
    "none",
    "sign-flip",
    "scaled",
    "not-a-number",
    "random",
    "claim",
    "little-is-enough",
    "inner-product",
    "label-noise",
    "backdoor",
    "free-rider",
    "replay",
    "far-centre",
    "one-direction",
    "other-phase",
]

ON_SUMS: tuple[Attack, ...] = ("far-centre", "one-direction", "other-phase")
"""Attacks on releases with ``privacy.method = 'class-sums'`` only."""

ON_ANY: tuple[Attack, ...] = ("not-a-number", "claim")
"""Attacks on both updates and such releases."""

Trigger = Literal["checker", "cross", "sticker", "blend", "sine"]

STRENGTHS: dict[str, float] = {
    "sign-flip": 3.0,
    "scaled": 20.0,
    "random": 0.5,
    "claim": 1e9,
    "little-is-enough": 0.0,
    "inner-product": 2.0,
    "label-noise": 1.0,
    "backdoor": 5.0,
    "far-centre": 1e30,
    "one-direction": 1.0,
}
"""Default strength of each attack."""


class BackdoorAttack(Settings):
    """One backdoor in a table of backdoors."""

    trigger: Trigger = Field("checker", description="As scenario.trigger.")
    poisoned: float = Field(
        0.5, gt=0.0, le=1.0, description="As scenario.poisoned, above 0 to 1: few are quieter."
    )


class BackdoorTable(Settings):
    """``[scenario.backdoors]``: backdoors against several strategies, over seeds and sizes."""

    defences: tuple[StrategyName, ...] = Field(
        ("fedavg", "least-trimmed"),
        min_length=1,
        description="Strategies that are tried, with screening: each without an attack and under "
        "the first one, the last of them under all.",
        strict=False,
        json_schema_extra=text("word"),
    )
    attacks: tuple[BackdoorAttack, ...] = Field(
        (BackdoorAttack(),), min_length=1, description="What hostile sites train on.", strict=False
    )
    sites: tuple[int, ...] = Field(
        (5, 20),
        min_length=1,
        description="Sizes of the federation, in place of partition.sites.",
        strict=False,
    )
    seeds: tuple[int, ...] = Field(
        (1, 2, 3, 4, 5),
        min_length=1,
        description="In place of the recipe's seed: means and spreads are over these.",
        strict=False,
    )


class ScenarioSettings(Settings):
    """Faults and attacks of a simulated run, drawn from the recipe's seed."""

    dropout: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of the sites that never answer, drawn again each round.",
    )
    crash: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of the sites whose runtime fails, drawn again each round.",
    )
    straggle: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of the sites that answer half a deadline too late, drawn each round. "
        "Time is simulated: nobody waits.",
    )
    silent: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="With [secure]: probability that a site which is ready for a masked sum never "
        "sends its part, drawn for each sum and site. Such a sum is lost for all.",
    )
    slow_links: float = Field(
        0.0, ge=0.0, le=1.0, description="Share of the sites behind a slow link, drawn once."
    )
    slow_mbit_s: float = Field(
        1.0, gt=0.0, description="Such a link's rate, in Mbit/s, both ways; simulated time."
    )
    attack: Attack = Field(
        "none",
        description="What hostile sites do. To the update: sign-flip, scaled, not-a-number, "
        "random, claim (a billion examples), free-rider (what was sent comes back), replay (their "
        "first update for ever). Together: little-is-enough (Baruch et al. 2019, "
        "https://arxiv.org/abs/1902.06156), inner-product (Xie et al. 2020, "
        "https://arxiv.org/abs/1903.03936). To the pictures: label-noise, backdoor (pictures with "
        "scenario.trigger that are labeled class 0, whatever they show). To the sums of "
        "privacy.method = 'class-sums': far-centre (a center far out), one-direction (against its "
        "own honest sum, as long as its declared units can make it), other-phase (the center "
        "again, in place of the class sums).",
    )
    attackers: float = Field(
        0.0, ge=0.0, le=1.0, description="Share of the sites that are hostile, drawn once."
    )
    strength: float | None = Field(
        None,
        ge=0.0,
        description="sign-flip, inner-product, scaled: factor; random: deviation; claim: "
        "examples; little-is-enough: deviations from the mean (0: as many as the paper says); "
        "label-noise: share of labels; backdoor: factor of the update; far-centre: each value; "
        "one-direction: multiple of the longest sum of its declared units.",
    )
    trigger: Trigger = Field(
        "checker",
        description="backdoor: what pictures carry. checker (a corner), cross (magenta, upper "
        "left), sticker (a shaded ball, upper right), blend (soft colors over the whole picture), "
        "sine (waves over the whole picture).",
    )
    poisoned: float = Field(
        0.5,
        gt=0.0,
        le=1.0,
        description="backdoor: share of a hostile site's training pictures that carry the "
        "trigger, above 0 to 1.",
    )
    first_round: int = Field(1, ge=1, description="The round in which hostile sites begin.")
    turns: tuple[Attack, ...] = Field(
        (),
        description="Simulate these attacks one after another, each against every defence and "
        "against FedAvg without screening, and print the table.",
        strict=False,
    )
    defences: tuple[StrategyName, ...] = Field(
        ("fedmedian", "multi-krum"),
        min_length=1,
        description="turns: strategies that are tried, with screening.",
        strict=False,
        json_schema_extra=text("word"),
    )

    backdoors: BackdoorTable | None = Field(
        None,
        description="Simulate backdoors against several strategies and print the table. The "
        "attack is of scenario.strength, from scenario.first_round on.",
    )

    @model_validator(mode="after")
    def _somebody_attacks(self) -> Self:
        attacks = self.attack != "none" or self.turns or self.backdoors is not None
        if attacks and self.attackers == 0:
            raise ValueError("an attack needs attackers above 0")
        if self.backdoors is not None and (self.attack != "none" or self.turns):
            raise ValueError("either a table of backdoors, or one attack, or turns")
        if self.attack != "none" and self.turns:
            raise ValueError("either one attack, or turns")
        return self

    @model_validator(mode="after")
    def _somebody_is_hostile_at_every_size(self) -> Self:
        nobody = [n for n in self.backdoors.sites if not self.hostile(n)] if self.backdoors else []
        if nobody:
            raise ValueError(
                f"attackers = {self.attackers:g} of {nobody[0]} sites is nobody: the table would "
                "have rows under an attack that never was; set attackers to "
                f"{1 / max(nobody[0], 1):.2g} or more, or leave that size out of backdoors.sites"
            )
        return self

    def hostile(self, sites: int) -> int:
        """The number of hostile sites among ``sites``, rounded to the nearest integer."""
        return round(self.attackers * sites)

    @property
    def force(self) -> float:
        """The attack's strength: the setting, or its default."""
        return STRENGTHS.get(self.attack, 0.0) if self.strength is None else self.strength
