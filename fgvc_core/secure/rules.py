"""How many sites a sum needs, and how many of them add the noise."""

from dataclasses import dataclass

MOST_SITES = 100
"""Most sites in a sum: every site shares a mask with every other, and words have room for these."""

LEAST_SITES = 3
"""Fewest sites in a sum: one may collude, and two honest ones have to be left."""

LEAST_HONEST = 2
"""Fewest sites of a sum that nobody else can look behind."""


@dataclass(frozen=True)
class SumRules:
    """Rules of one run's sums.

    Attributes:
        least: Fewest sites in a sum.
        most: Most sites in a sum.
        colluding: Of *all sites that can be invited*, how many may work with the coordinator or run
            other code without breaking the promise. At least 1: every site sees the model and knows
            its own noise.
    """

    least: int
    most: int
    colluding: int

    @property
    def honest(self) -> int:
        """Fewest honest sites in a sum."""
        return self.least - self.colluding

    def adding(self, size: int) -> int:
        """How many sites of a sum over ``size`` sites have to add up to the full noise."""
        return size - self.colluding

    @property
    def sharers(self) -> int:
        """The most sites that share the noise: what one site alone is charged for."""
        return self.adding(self.most)
