"""Seconds from a process's start to its federation's first round.

``python -m fieldmark.simulations.bench.startup RECIPE_TEXT``, in a separate process, because after
an earlier federation the workers' fork server is warm.
"""

import time

BEGAN = time.monotonic()

import sys  # noqa: E402
import tempfile  # noqa: E402
from contextlib import suppress  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from fieldmark.simulations import workers  # noqa: E402


class FirstRound(Exception):
    """Raised when the first round begins, to end the measurement."""


def main(recipe_text: str) -> float:
    """Seconds until the first round of a recipe."""
    # Like the command line: the workers' imports run in parallel with this process's own.
    workers.context()
    from fgvc_core.data.cache import cache_folder
    from fgvc_core.recipe import parse_recipe
    from fieldmark.simulations.bench.engine import run_quietly
    from fieldmark.simulations.folders import lay_out
    from fieldmark.simulations.planning import Simulation
    from fieldmark.simulations.preparation import deal

    recipe = parse_recipe(recipe_text)
    found: list[float] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "round_started":
            found.append(time.monotonic() - BEGAN)
            raise FirstRound

    with tempfile.TemporaryDirectory() as folder, workers.make_pool(2) as pool:
        plan = Simulation(recipe, Path(folder) / "run")
        setting = deal(recipe, cache_folder())
        lay_out(plan, setting)
        with suppress(FirstRound):
            run_quietly(plan, setting, pool, 2, listen)
    return found[0]


if __name__ == "__main__":
    print(main(sys.argv[1]))
