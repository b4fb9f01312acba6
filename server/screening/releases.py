"""Plausibility checks of the sums that sites release, by public bounds and by comparing sites.

**Class statistics** come without differential privacy, and nothing public bounds the norm of a
feature vector. But all sites compute vectors with one frozen model, so their norms are similar.
Each site's typical norm and its longest class mean are compared with the median over all sites,
which is an honest site's as long as fewer than half of the sites are hostile; the claimed number of
pictures likewise. Vectors of plausible norm may still be reversed, so a site's class sums are
compared with the others' of the same classes, each site counting once. Sums of a wrong class with
plausible norm are not detected: they count for at most ``federation.max_weight_share``. That share
is of pictures; vectors of up to ``LONGEST`` times the median norm count for that much more.

**Noisy sums** under differential privacy are checked before the other sites pay for the next
release. Public bounds are the site's declared units, how far one unit moves a sum, and the noise. A
sum of N parts of norm at most c, with noise of deviation s on each of d values, has a norm of at
most N c + s (sqrt(d) + 8), except with probability below e**-32 (Laurent and Massart 2000, lemma 1,
https://doi.org/10.1214/aos/1015957395). A class's vectors have norm 1 and carry the count with
them, so the noisy count bounds their sum. Within those bounds a sum may still point against all
others. Sites hold different classes, and noise changes directions, so a site is refused only if its
sum points clearly against the sum of the others (the rule of
:mod:`fieldmark.server.screening.comparison`) and there are at least three others.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgvc_core.models.class_statistics import ClassStatistics
from fieldmark.server.screening.comparison import AGAINST, LEAST_SPREAD, NORMAL

LONGEST = 4.0
"""Largest ratio of a site's vector norm to the median over sites, or of the median to it."""

LARGEST = 1e6
"""Largest root mean square of a vector's values. No backbone comes near; beyond it the head is
not finite, and every honest site's update would be refused for that."""

LEAST_LENGTHS = 3
"""Fewest sites whose norms and claims are compared."""

LEAST_DIRECTIONS = 4
"""Fewest sites whose directions are compared."""

DEVIATIONS = 8.0

Sums = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Summary:
    """Summary of one site's statistics, kept until all have arrived.

    Attributes:
        examples: Pictures, above 0.
        typical: Root mean square norm of the vectors, from the scatter; without a scatter, the norm
            of the longest class mean.
        longest: Norm of the longest class mean.
    """

    examples: float
    typical: float
    longest: float


def summary(found: ClassStatistics) -> Summary | None:
    """Summarize a site's statistics; None if it has no picture."""
    examples = float(found.counts_K.sum())
    if not examples:
        return None
    means_K = np.linalg.norm(found.sums_KD, axis=1) / np.maximum(found.counts_K, 1.0)
    longest = float(means_K.max())
    typical = longest
    if found.scatter_DD is not None:
        typical = float(np.sqrt(max(float(np.trace(found.scatter_DD)), 0.0) / examples))
    return Summary(examples, typical, longest)


def impossible(one: Summary, dim: int) -> str | None:
    """Why a site's statistics are impossible in themselves; None if they are possible.

    Args:
        one: The site's.
        dim: D, values of a vector.
    """
    length, limit = max(one.typical, one.longest), LARGEST * float(np.sqrt(dim))
    if length <= limit:
        return None
    return (
        f"The vectors of its pictures have length {length:.4g}, above {limit:.4g}: {LARGEST:g} for "
        f"each of {dim:,} values."
    )


def unlike_others(found: Mapping[str, Summary], weight_ratio: float) -> dict[str, str]:
    """Site -> why it is refused, for sites whose norms or counts are far above the median.

    Args:
        found: Summaries of the sites that have pictures.
        weight_ratio: ``federation.max_weight_ratio``: most pictures, as a multiple of the median.
    """
    if len(found) < LEAST_LENGTHS:
        return {}
    pictures = float(np.median([one.examples for one in found.values()]))
    length = float(np.median([one.typical for one in found.values()]))
    refused = {}
    for site, one in found.items():
        if one.examples > weight_ratio * pictures:
            refused[site] = (
                f"The site claims {one.examples:,.0f} pictures, above "
                f"{weight_ratio * pictures:,.0f} (federation.max_weight_ratio times the median)."
            )
        elif max(one.typical, one.longest) > LONGEST * length:
            refused[site] = (
                f"The vectors of its pictures have length {max(one.typical, one.longest):.4g}, "
                f"above {LONGEST * length:.4g}: {LONGEST:g} times the median over the sites."
            )
        elif one.typical < length / LONGEST:
            refused[site] = (
                f"The vectors of its pictures have length {one.typical:.4g}, below "
                f"{length / LONGEST:.4g}: the median over the sites divided by {LONGEST:g}."
            )
    return refused


def against_others(sites: Iterable[str], sums: Sums, spread: float) -> dict[str, str]:
    """Site -> why it is refused, for sites whose class sums point against the others'.

    Args:
        sites: Sites to compare.
        sums: Site -> float64 (K, D), its class sums over its number of pictures; zeros where it
            holds no picture. Only classes that the site holds are compared. Each is looked up
            twice, and only one is held at a time.
        spread: ``federation.direction_spread``; 0: directions are not compared.
    """
    names = list(sites)
    if not spread or len(names) < LEAST_DIRECTIONS:
        return {}
    total_KD = np.array(sums[names[0]])
    for site in names[1:]:
        total_KD += sums[site]
    cosines = {}
    for site in names:
        own_KD = sums[site]
        held_K = own_KD.any(axis=1)
        others_KD = (total_KD - own_KD)[held_K]
        cosines[site] = cosine(own_KD[held_K].reshape(-1), others_KD.reshape(-1))
    return clearly_against(cosines, spread)


@dataclass(frozen=True)
class SumsScreening:
    """Checks the releases of one phase.

    Attributes:
        units: Site -> its declared number of units.
        bound: Largest norm of one unit's part.
        deviation: Of the noise on each value.
        spread: ``federation.direction_spread``; 0: directions are not compared.
        count_coordinate: For class sums: the constant appended to each vector, in the last column;
            None: the sums are of vectors only.
    """

    units: Mapping[str, int]
    bound: float
    deviation: float
    spread: float
    count_coordinate: float | None = None

    def refused(self, sums: Sums) -> dict[str, str]:
        """Site -> why its sums are refused."""
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
        """Sites whose sum points against the sum of the others, each weighted by its units."""
        if not self.spread or len(sums) < LEAST_DIRECTIONS:
            return {}
        vectors = {
            site: (values if self.count_coordinate is None else values[:, :-1]).reshape(-1)
            for site, values in sums.items()
        }
        total = np.sum(list(vectors.values()), axis=0)
        cosines = {site: cosine(vector, total - vector) for site, vector in vectors.items()}
        return clearly_against(cosines, self.spread)


def clearly_against(cosines: Mapping[str, float], spread: float) -> dict[str, str]:
    """Site -> why it is refused, for sites whose sums point clearly against the others'.

    Args:
        cosines: Site -> cosine between its sums and those of the others.
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
    """Site -> why it is refused, for sites that declare far more units than the median.

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
    """Cosine of two vectors; 0 if one has norm 0."""
    lengths = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / lengths if lengths > 0 else 0.0
