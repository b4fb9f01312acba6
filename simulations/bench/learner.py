"""Benchmark ``learner``: an ablation of the learner's parts over three seeds.

Every row is a complete federation on embedded pictures: ``simulations/recipes/learner.toml`` with
one part changed. A seed determines the initial weights, the partition, and the order and views of
the pictures; the pictures are the same. A part counts as helpful if its mean gain over the same
seeds is at least one standard deviation: of the gain, or of either score, whichever is the largest.
Finished runs are kept in a folder and reused for an equal recipe.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fgvc_core.files import replace_json
from fgvc_core.recipe import Recipe, load_recipe
from fieldmark.simulations.bench import check_rows
from fieldmark.simulations.bench.learner_rows import ROWS, Row
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.simulate import run_with
from fieldmark.simulations.workers import available_cores, hired

RECIPE = Path(__file__).parents[1] / "recipes" / "learner.toml"
SEEDS = (1, 2, 3)
KEPT = Path("runs") / "bench-learner"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """The result of one row and seed.

    Attributes:
        score: 0 to 1.
        seconds: Wall time of the whole run.
        cpu: CPU seconds of the workers, which depend less on other load.
        sent: Bytes, up and down.
    """

    score: float
    seconds: float
    cpu: float
    sent: int


def bench_learner(
    rows: Sequence[str] = (), kept: Path = KEPT, say: Say = lambda line: None
) -> dict[str, Any]:
    """The figures of ``fieldmark bench learner``, one per row.

    Args:
        rows: Names of rows; empty: all. The rows that they are compared with are run, too.
        kept: Folder of finished runs.
        say: Called after every run.

    Raises:
        ConfigurationError: for an unknown row.
    """
    chosen = with_references(rows)
    found: dict[str, list[Outcome]] = {}
    with hired(len(available_cores())) as pool:
        for name in chosen:
            found[name] = [_once(name, seed, kept, pool, say) for seed in SEEDS]
    return {name: row_figure(ROWS[name], found[name], _of(found, name)) for name in chosen}


def with_references(rows: Sequence[str]) -> list[str]:
    """The rows to run, with their references, in the table's order.

    Raises:
        ConfigurationError: for an unknown row.
    """
    check_rows(rows, ROWS, "row of the ablation")
    wanted = set(rows or ROWS)
    wanted |= {against for name in wanted if (against := ROWS[name].against) is not None}
    return [name for name in ROWS if name in wanted]


def recipe_of(row: Row, seed: int) -> Recipe:
    """The recipe of a row and a seed."""
    return load_recipe(RECIPE, (*row.sets, f"seed={seed}"))


def row_figure(row: Row, found: list[Outcome], reference: list[Outcome] | None) -> dict[str, Any]:
    """The figures of one row.

    ``value`` and ``reference`` are means over the seeds; ``deviation`` is the standard deviation of
    the row's scores, ``gain`` the mean difference over equal seeds, ``gain_deviation`` the standard
    deviation of the differences, and ``verdict`` the conclusion.
    """
    scores = [outcome.score for outcome in found]
    values: dict[str, Any] = {
        "value": round(statistics.mean(scores), 4),
        "deviation": round(statistics.stdev(scores), 4),
        "reference": None,
        "ratio": None,
        "gain": None,
        "gain_deviation": None,
        "verdict": None,
        "unit": row.score[-1],
        "seconds": round(statistics.mean(outcome.seconds for outcome in found), 1),
        "cpu_seconds": round(statistics.mean(outcome.cpu for outcome in found), 1),
        "bytes": round(statistics.mean(outcome.sent for outcome in found)),
        "how": f"{row.what} ({' '.join(row.sets) or 'as the recipe is'})",
    }
    if reference is None:
        return values
    others = [outcome.score for outcome in reference]
    gains = [one - other for one, other in zip(scores, others, strict=True)]
    mean, spread = statistics.mean(others), statistics.stdev(gains)
    most = max(spread, statistics.stdev(scores), statistics.stdev(others))
    gain = statistics.mean(gains)
    values.update(
        reference=round(mean, 4),
        ratio=round(statistics.mean(scores) / mean, 4) if mean else None,
        gain=round(gain, 4),
        gain_deviation=round(spread, 4),
        verdict="helps" if gain >= most else "hurts" if gain <= -most else "no difference",
    )
    return values


def _of(found: dict[str, list[Outcome]], name: str) -> list[Outcome] | None:
    against = ROWS[name].against
    return None if against is None else found[against]


def _once(name: str, seed: int, kept: Path, pool: Executor, say: Say) -> Outcome:
    row = ROWS[name]
    path = kept / f"{name}-{seed}.json"
    asked = {"recipe": RECIPE.read_text(encoding="utf-8"), "sets": list(row.sets), "seed": seed}
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["asked"] == asked:
            return Outcome(**known["outcome"])
    before = _cpu_seconds(pool)
    with tempfile.TemporaryDirectory() as folder:
        plan = Simulation(recipe_of(row, seed), Path(folder) / "run")
        metrics = run_with(plan, pool, len(available_cores()), lambda done, total: None)
    score: Any = metrics
    for key in row.score:
        score = score[key]
    outcome = Outcome(
        score,
        metrics["wall_s"],
        round(_cpu_seconds(pool) - before, 2),
        metrics["bytes_up"] + metrics["bytes_down"],
    )
    kept.mkdir(parents=True, exist_ok=True)
    replace_json(path, {"asked": asked, "outcome": asdict(outcome)})
    say(f"{name}, seed {seed}: {score:.3f} in {outcome.seconds:.0f} s")
    return outcome


def _cpu_seconds(pool: Executor) -> float:
    """CPU seconds of the pool's workers so far; 0 without /proc."""
    ticks = 0
    for process in list(getattr(pool, "_processes", None) or {}):
        try:
            # Split after the command's name, which may contain spaces; utime and stime are fields
            # 14 and 15.
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def show_learner(figures: dict[str, Any]) -> None:
    """Print the ablation as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"learner: {len(SEEDS)} seeds a row")
    for column in ("part", "score", "+-", "gain", "+-", "s", "CPU s", "MB", "verdict", "what"):
        table.add_column(column, justify="left" if column in ("part", "what") else "right")
    for name, entry in figures.items():
        table.add_row(
            name,
            f"{entry['value']:.3f}",
            f"{entry['deviation']:.3f}",
            "" if entry["gain"] is None else f"{entry['gain']:+.3f}",
            "" if entry["gain"] is None else f"{entry['gain_deviation']:.3f}",
            f"{entry['seconds']:.0f}",
            f"{entry['cpu_seconds']:.0f}",
            f"{entry['bytes'] / 1e6:.1f}",
            entry["verdict"] or "",
            entry["how"],
        )
    Console().print(table)
