"""Random selection of the sites that take part in a round."""

import math
from collections.abc import Collection

import numpy as np

from fgvc_core.seeds import derive_seed

PATIENCE_OF_A_SITE = 2
"""Longest wait of a site, as a multiple of the rounds in which every site is asked once."""


def wanted(sites: int, fraction: float) -> int:
    """Number of replies that a round aims for: a share of the sites, at least one."""
    # Against rounding: 0.07 * 100 is 7.000000000000001, which must not become 8.
    return min(sites, max(1, math.ceil(fraction * sites - 1e-9)))


def draw_cohort(
    sites: list[str],
    fraction: float,
    seed: int,
    round_: int,
    *,
    expected_dropout: float = 0.0,
    last_drawn: dict[str, int] | None = None,
    failed: Collection[str] = (),
    least: int = 1,
) -> list[str]:
    """Draw a round's cohort, sorted by name.

    Sites are drawn by name, not by node id (which differs between runs), and from the round's own
    seed, so a resumed run draws the same cohorts. A site that has waited twice as many rounds as it
    takes to ask every site once goes first.

    Args:
        sites: Names of all sites that are present.
        fraction: Share to draw, 0 to 1; at least one site is drawn.
        seed: The recipe's seed.
        round_: Which round.
        expected_dropout: Expected share of sites without a reply; the cohort is larger accordingly.
        last_drawn: Site -> the last round that it was drawn for.
        failed: Sites without a sound reply in a void attempt at this round; drawn last, or a round
            of a few sites would ask the same ones again.
        least: Fewest sites to draw, if so many are present: a sum over fewer is refused.
    """
    hoped = wanted(len(sites), fraction)
    hoped = max(hoped, least)
    count = min(len(sites), math.ceil(hoped / (1.0 - expected_dropout) - 1e-9))
    if count >= len(sites):
        return sorted(sites)
    generator = np.random.default_rng(derive_seed(seed, "cohort", round_))
    shuffled = generator.permutation(sorted(sites)).tolist()
    if last_drawn is not None:
        longest = PATIENCE_OF_A_SITE * math.ceil(len(sites) / count)
        waited = {site: round_ - last_drawn.get(site, 0) for site in sites}
        # Python's sort is stable, so the shuffled order breaks ties.
        shuffled.sort(key=lambda site: -waited[site] if waited[site] >= longest else 0)
    shuffled.sort(key=lambda site: site in failed)
    return sorted(shuffled[:count])
