"""Can a site's noisy sums be? Judged by public facts alone, and beside the other sites' sums.

A release under differential privacy is judged before the other sites pay for the next one. What
is public bounds it: the units that a site has declared, how far one unit moves a sum, and the
noise. A sum of N parts of length c at most, with noise of deviation s on each of d values, is not
longer than N c + s (sqrt(d) + 8): longer noise has a probability below e**-32 (Laurent and Massart
2000, lemma 1, https://doi.org/10.1214/aos/1015957395). A class's vectors have length 1 and carry
the count with them, so their sum is not longer than the noisy count says.

Within those bounds a sum may still point against all others. Sites hold different classes, and
noise turns a sum about: one is refused only where it points clearly against the sum of the others
(the rule of :mod:`fieldmark.server.screening.comparison`), and only beside three others at least.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fieldmark.server.screening.comparison import AGAINST, LEAST_SPREAD, NORMAL

DEVIATIONS = 8.0
LEAST_SITES = 4
"""Fewest sites whose directions are compared."""

Sums = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class SumsScreening:
    """Judges the releases of one phase.

    Attributes:
        units: Site -> its declared number of units.
        bound: Largest length of one unit's part.
        deviation: Of the noise on each value.
        spread: ``federation.direction_spread``; 0: directions are not compared.
        count_coordinate: Class sums: the constant beside each vector, in the last column; None:
            the sums are of vectors alone.
    """

    units: Mapping[str, int]
    bound: float
    deviation: float
    spread: float
    count_coordinate: float | None = None

    def refused(self, sums: Sums) -> dict[str, str]:
        """Site -> why its sums cannot be, of those that cannot."""
        found = {site: self._too_long(site, values) for site, values in sums.items()}
        refused = {site: why for site, why in found.items() if why}
        left = {site: values for site, values in sums.items() if site not in refused}
        return refused | self._against(left)

    def _too_long(self, site: str, values: NDArray[np.float64]) -> str:
        norm = float(np.linalg.norm(values))
        limit = self.units[site] * self.bound + self._noise(values.size)
        if not norm <= limit:
            return (
                f"The sum's norm is {norm:.4g}, above {limit:.4g}: the most that its "
                f"{self.units[site]:,} declared units and the noise can come to."
            )
        if self.count_coordinate is None:
            return ""
        lengths_K = np.linalg.norm(values[:, :-1], axis=1)
        counts_K = (values[:, -1] + DEVIATIONS * self.deviation) / self.count_coordinate
        over_K = lengths_K - np.maximum(counts_K, 0.0) - self._noise(values.shape[1] - 1)
        worst = int(np.argmax(over_K))
        if over_K[worst] > 0:
            return (
                f"The sum of class {worst} has length {lengths_K[worst]:.4g}, more than its noisy "
                "count of vectors of length 1 can have."
            )
        return ""

    def _noise(self, size: int) -> float:
        return self.deviation * (float(np.sqrt(size)) + DEVIATIONS)

    def _against(self, sums: Sums) -> dict[str, str]:
        """Those that point against the sum of the others, each other site weighing by its units."""
        if not self.spread or len(sums) < LEAST_SITES:
            return {}
        vectors = {
            site: (values if self.count_coordinate is None else values[:, :-1]).reshape(-1)
            for site, values in sums.items()
        }
        total = np.sum(list(vectors.values()), axis=0)
        cosines = {site: cosine(vector, total - vector) for site, vector in vectors.items()}
        return clearly_against(cosines, self.spread)


def clearly_against(cosines: Mapping[str, float], spread: float) -> dict[str, str]:
    """Site -> why its sums cannot be, of those that point clearly against the others'.

    Args:
        cosines: Site -> between its sums and those of the others.
        spread: ``federation.direction_spread``, above 0.
    """
    values = np.array(list(cosines.values()))
    middle = float(np.median(values))
    deviation = max(NORMAL * float(np.median(np.abs(values - middle))), LEAST_SPREAD)
    limit = min(middle - spread * deviation, AGAINST)
    return {
        site: f"The sum points against those of the other sites: cosine {found:.3f}, below "
        f"{limit:.3f} (median {middle:.3f}, federation.direction_spread = {spread:g})."
        for site, found in cosines.items()
        if found < limit
    }


def too_many_units(units: Mapping[str, int], ratio: float) -> dict[str, str]:
    """Site -> why its declared number of units does not count, of those where it does not.

    Args:
        units: Of the sites that are present.
        ratio: ``federation.max_weight_ratio``: most units, as a multiple of the median.
    """
    middle = float(np.median(list(units.values()))) if units else 0.0
    return {
        site: f"The site declares {count:,} units, above {ratio * middle:,.0f} "
        "(federation.max_weight_ratio times the median)."
        for site, count in units.items()
        if count > ratio * middle
    }


def cosine(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    """Between two vectors; 0 where one has no length."""
    lengths = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / lengths if lengths > 0 else 0.0
