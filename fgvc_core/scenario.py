"""Settings of ``[scenario]``: what goes wrong in a simulated federation, and who attacks it.

Only a simulation takes them: coordinator and sites of a real federation refuse the recipe.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from fgvc_core.configuration import Settings
from fgvc_core.protocol.settings import Strategy

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
"""Attacks on what a site releases with ``privacy.method = 'class-sums'``, and on nothing else."""

ON_ANY: tuple[Attack, ...] = ("not-a-number", "claim")
"""Attacks on updates and on such releases."""

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
"""An attack's strength where the recipe names none."""


class ScenarioSettings(Settings):
    """Faults and attacks of a simulated run; drawn from the recipe's seed."""

    dropout: float = Field(
        0.0, ge=0.0, le=1.0, description="Share of the sites that never answer, anew each round."
    )
    crash: float = Field(
        0.0, ge=0.0, le=1.0, description="Share of the sites whose runtime fails, anew each round."
    )
    straggle: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of the sites that answer half a deadline too late, anew each round. "
        "Time is simulated: nobody waits.",
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
        "https://arxiv.org/abs/1903.03936). To the pictures: label-noise, backdoor (a patch in a "
        "corner that means class 0). To the sums of privacy.method = 'class-sums': far-centre "
        "(a centre far out), one-direction (against its own honest sum, as long as its declared "
        "units can make it), other-phase (the centre again, in place of the class sums).",
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
    first_round: int = Field(1, ge=1, description="The round in which hostile sites begin.")
    turns: tuple[Attack, ...] = Field(
        (),
        description="Simulate these attacks one after another, each against every defence and "
        "against FedAvg without screening, and print the table.",
        strict=False,
    )
    defences: tuple[Strategy, ...] = Field(
        ("fedmedian", "multi-krum"),
        min_length=1,
        description="turns: strategies that are tried, with screening.",
        strict=False,
    )

    @model_validator(mode="after")
    def _somebody_attacks(self) -> Self:
        if (self.attack != "none" or self.turns) and self.attackers == 0:
            raise ValueError("an attack needs attackers above 0")
        if self.attack != "none" and self.turns:
            raise ValueError("either one attack, or turns")
        return self

    @property
    def force(self) -> float:
        """The attack's strength, given or usual."""
        return STRENGTHS.get(self.attack, 0.0) if self.strength is None else self.strength
