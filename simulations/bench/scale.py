"""Cost of a simulated run as the number of sites grows, measured in a separate process.

Run: ``python -m fieldmark.simulations.bench.scale SITES COHORT ROUNDS [PICTURES]``.

Every site has about eight pictures (or PICTURES) of 32 px and the smallest network, so the cost is
that of sites, not of learning. Prints wall and CPU seconds (of the coordinator and its workers
together), resident memory of the coordinator after each round in MB, bytes of a round, and disk
usage.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fgvc_core.data.cache import cache_folder
from fgvc_core.recipe import parse_recipe
from fieldmark.simulations.bench.engine import run_quietly, tree_cpu
from fieldmark.simulations.bench.memory import resident_bytes
from fieldmark.simulations.folders import lay_out
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, prepare
from fieldmark.simulations.workers import available_cores, make_pool

PICTURES = 8
"""Pictures a site, unless said otherwise."""

RECIPE = """
name = "bench-scale"
[data]
name = "fieldmarks"
image_size = 32
fieldmarks_train = {pictures}
fieldmarks_test = 48
[model]
backbone = "fieldmark_nano"
[train]
epochs = 1
batch_size = 4
[federation]
rounds = {rounds}
fraction = {fraction}
[partition]
scheme = "iid"
min_examples = 1
sites = {sites}
[evaluate]
every = 0
pixel_baseline = false
"""


class Watch:
    """Listens to a run's events: start times of its parts, and memory after each round."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.first_round: float | None = None
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.megabytes: list[float] = []
        self.sent: list[int] = []
        self._bytes = 0
        self._since = self.began
        self._cpu = self._first_cpu = tree_cpu()
        self.roll_call_cpu = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        """Process an event."""
        now = time.monotonic()
        self._bytes += event.get("bytes_up", 0) + event.get("bytes_down", 0)
        if event["event"] == "round_started":
            if self.first_round is None:
                self.first_round = now - self.began
                self.roll_call_cpu = tree_cpu() - self._first_cpu
            self._since, self._cpu, self._bytes = now, tree_cpu(), 0
        elif event["event"] == "round_finished":
            self.seconds.append(now - self._since)
            self.cpu.append(tree_cpu() - self._cpu)
            self.megabytes.append(resident_bytes() / 1e6)
            self.sent.append(self._bytes)


def measure(sites: int, cohort: int, rounds: int, pictures: int = PICTURES) -> dict[str, Any]:
    """Run one federation and measure its cost.

    Args:
        sites: Number of sites.
        cohort: How many of them a round asks.
        rounds: Number of rounds.
        pictures: Pictures a site, about.
    """
    recipe = parse_recipe(
        RECIPE.format(
            pictures=sites * pictures, rounds=rounds, fraction=cohort / sites, sites=sites
        )
    )
    workers = len(available_cores())
    setting = deal(recipe, cache_folder())
    with tempfile.TemporaryDirectory() as folder, make_pool(workers) as pool:
        prepare(recipe, setting, pool, lambda done, total: None)
        plan = Simulation(recipe, Path(folder) / "run")
        began, cpu = time.monotonic(), time.process_time()
        lay_out(plan, setting)
        laid_out, laid_out_cpu = time.monotonic() - began, time.process_time() - cpu
        watch = Watch()
        run_quietly(plan, setting, pool, workers, watch)
        total = time.monotonic() - watch.began
        return {
            "sites": sites,
            "cohort": cohort,
            "rounds": rounds,
            "lay_out_s": round(laid_out, 2),
            "lay_out_cpu_s": round(laid_out_cpu, 2),
            "roll_call_cpu_s": round(watch.roll_call_cpu, 2),
            "round_cpu_s": round(statistics.median(watch.cpu[1:] or watch.cpu), 3),
            "roll_call_s": round(watch.first_round or 0.0, 2),
            "round_s": round(statistics.median(watch.seconds[1:] or watch.seconds), 3),
            "closing_s": round(total - (watch.first_round or 0.0) - sum(watch.seconds), 2),
            "total_s": round(total, 2),
            "round_mb": round(statistics.median(watch.sent) / 1e6, 3),
            "memory_mb": [round(value) for value in watch.megabytes],
            "home_kb": round(_disk(plan.out / "sites") / sites / 1e3, 1),
            "run_mb": round((_disk(plan.out) - _disk(plan.out / "sites")) / 1e6, 2),
        }


def _disk(folder: Path) -> int:
    """Disk usage of all files, in bytes."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    print(json.dumps(measure(*(int(value) for value in sys.argv[1:]))))
