"""Who takes part in a round."""

import math

import numpy as np

from fgvc_core.seeds import derive_seed


def draw_cohort(sites: list[str], fraction: float, seed: int, round_: int) -> list[str]:
    """A round's cohort, sorted by name.

    Drawn over names, not over node ids (which differ from run to run), and from the
    round's own seed, so that a resumed run draws what the uninterrupted one would.

    Args:
        sites: Names of all sites that are present.
        fraction: Share to draw, 0 to 1; at least one site is drawn.
        seed: The recipe's seed.
        round_: Which round.
    """
    count = max(1, math.ceil(fraction * len(sites) - 1e-9))
    if count >= len(sites):
        return sorted(sites)
    generator = np.random.default_rng(derive_seed(seed, "cohort", round_))
    return sorted(generator.choice(sorted(sites), size=count, replace=False).tolist())
