"""How fast sites learn in a round: what the lengths of their updates are divided by."""

import math
from collections.abc import Callable

from fgvc_core.recipe import Recipe
from fgvc_core.training.loop import Stretch, mean_rate

LOOKED_AT = 8
"""Of the rounds that an update may stem from, so many are looked at."""


class Pace:
    """Learning rates of one recipe.

    Args:
        recipe: Its ``[train]``, ``[federation]`` and ``[wire]`` count.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._train = recipe.train
        self._rounds = recipe.federation.rounds
        # With top-k a change waits at its site for so many rounds, and travels with theirs.
        self.waits = math.ceil(1 / recipe.wire.top_k) if recipe.wire.top_k else 1

    def __call__(self, number: int) -> Callable[[float], float]:
        """Examples -> mean learning rate of such a site's steps in a round.

        Of the fastest round that its updates may stem from, as far as a few of them tell.
        """
        earliest = max(1, number - self.waits + 1)
        step = math.ceil((number - earliest + 1) / LOOKED_AT)
        stretches = [Stretch(n, self._rounds) for n in range(number, earliest - 1, -step)]

        def rate(examples: float) -> float:
            count = max(round(examples), 1)
            return max(mean_rate(self._train, stretch, count) for stretch in stretches)

        return rate
