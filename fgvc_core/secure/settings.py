"""Settings of ``[secure]``: sums that the coordinator sees, and no site's part of them."""

from typing import Self

from pydantic import Field, model_validator

from fgvc_core.configuration import Settings
from fgvc_core.secure.rules import LEAST_HONEST, LEAST_SITES, MOST_SITES, SumRules


class SecureSettings(Settings):
    """Secure aggregation of one run; a site's policy may only be stricter."""

    least: int = Field(
        ge=LEAST_SITES,
        le=MOST_SITES,
        description=f"Fewest sites in a sum, {LEAST_SITES} to {MOST_SITES}; with fewer nothing is "
        "opened.",
    )
    most: int | None = Field(
        None,
        ge=LEAST_SITES,
        le=MOST_SITES,
        description=f"Most sites in a sum, {LEAST_SITES} to {MOST_SITES}: what one site's noise "
        "alone protects is charged for so many. Without it the sites that a run is started with.",
    )
    colluding: int = Field(
        ge=1,
        le=MOST_SITES - LEAST_HONEST,
        description="Of all the sites of the federation, how many may work with the coordinator or "
        "run other code, and every sum still hides the others: secure.least minus this many "
        f"({LEAST_HONEST} at least) are always behind it, and share the noise. At least 1: every "
        "site knows its own noise and sees the model.",
    )

    range: float = Field(
        1.0,
        gt=0.0,
        le=1e6,
        description="Without [privacy]: most by which a round may change one value of the model at "
        "a site; a larger change is cut to it, and the events count how many were. Values travel "
        "as whole multiples of range / 21,474,836 (up to 1,048,570 values: of range / 9.2e16), "
        "times the site's weight.",
    )
    most_examples: int = Field(
        10_000,
        ge=1,
        le=10_000_000,
        description="Without [privacy]: examples from which on a site weighs no more, about the "
        "largest site's. With far fewer at every site, rounding is coarser.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least - self.colluding < LEAST_HONEST:
            raise ValueError(
                f"least = {self.least} minus colluding = {self.colluding} leaves "
                f"{self.least - self.colluding} honest sites in a sum; {LEAST_HONEST} at least, "
                "because a sum over one site is that site's own answer"
            )
        if self.most is not None and self.most < self.least:
            raise ValueError(f"most = {self.most} is below least = {self.least}")
        return self

    @property
    def rules(self) -> SumRules:
        """The same as numbers; without ``most`` for the largest sum that is possible."""
        return SumRules(self.least, self.most or MOST_SITES, self.colluding)

    @property
    def sharers(self) -> int:
        """Most sites that share the noise of a sum."""
        return self.rules.sharers
