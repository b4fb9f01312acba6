"""Can a site's class statistics be? Judged beside the other sites', before a head is made of them.

Without differential privacy nothing public bounds a feature vector's length. What all sites compute
under one frozen model does: their vectors are about as long. So each site's typical length and its
longest class mean are compared with the median over all sites; the median stays an honest one's as
long as fewer than half of the sites lie. A claim to many pictures is compared likewise, by the rule
that noisy class sums have for declared units.

Vectors of honest length may still be turned around. Class sums of the classes that a site holds
are compared with the others' of the same classes, each site counting once: the rule of
:mod:`fieldmark.server.screening.class_sums`.

Sums of another class, of honest length, are not found out: they count for at most
``federation.max_weight_share``. That share is of pictures: vectors of up to ``LONGEST`` times the
median's length count for so many times more.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgvc_core.models.class_statistics import ClassStatistics
from fieldmark.server.screening.class_sums import clearly_against, cosine

LONGEST = 4.0
"""Most that vectors may be longer, or shorter, than the median over sites."""

LARGEST = 1e6
"""Most that a value of a vector may be, as a root mean square over the vector. No backbone comes
near; beyond it the head is not finite, and every honest site's update would be refused for that."""

LEAST_SITES = 3
"""Fewest sites whose lengths and claims are compared."""


@dataclass(frozen=True)
class Summary:
    """What is kept of one site's statistics until all have come.

    Attributes:
        examples: Pictures, above 0.
        typical: Root mean square length of the vectors, from the scatter; without a scatter the
            length of the longest class mean.
        longest: Length of the longest class mean.
    """

    examples: float
    typical: float
    longest: float


def summary(found: ClassStatistics) -> Summary | None:
    """The summary of a site's statistics; None where it has no picture."""
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
    """Why a site's statistics cannot be, whatever the others' are; None where they can.

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
    """Site -> why its statistics cannot be, of those unlike the others' in length or number.

    Args:
        found: Of the sites that have pictures.
        weight_ratio: ``federation.max_weight_ratio``: most pictures, as a multiple of the median.
    """
    if len(found) < LEAST_SITES:
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


def against_others(
    sites: Iterable[str], sums: "Mapping[str, NDArray[np.float64]]", spread: float
) -> dict[str, str]:
    """Site -> why, of those whose class sums point against the others' of the same classes.

    Args:
        sites: Which are compared.
        sums: Site -> float64 (K, D), its class sums over its number of pictures; zeros where it
            holds no picture. Each is looked up twice, and only one is held at a time.
        spread: ``federation.direction_spread``; 0: directions are not compared.
    """
    names = list(sites)
    if not spread or len(names) <= LEAST_SITES:
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
