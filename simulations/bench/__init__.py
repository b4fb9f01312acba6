"""Benchmarks, each with a reference that is measured in the same run."""

import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fgvc_core.errors import ConfigurationError, nearest

NAMES = (
    *("engine", "dp", "deploy", "rounds", "secure", "wire", "learner", "selection", "unknown"),
    *("heads", "features", "gpu", "scale"),
)


def run_benches(
    name: str,
    rows: Sequence[str] = (),
    kept: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Run one benchmark, or all of them.

    Args:
        name: One of ``NAMES``, or ``all``.
        rows: For ``learner`` and ``heads``: rows (or sets) to run; empty: all.
        kept: For these two: the folder of finished runs.
        say: Called with progress of long benchmarks.

    Returns:
        One entry per benchmark: ``name``, ``machine``, and ``figures``, each with ``value``,
        ``reference``, ``ratio`` (value / reference, None without one), ``unit`` and ``how``.

    Raises:
        ConfigurationError: if there is no benchmark, or no row, of that name.
    """
    if name != "all" and name not in NAMES:
        raise ConfigurationError(
            f"There is no benchmark '{name}'; there are {', '.join(NAMES)} and all.",
            remedy=nearest(name, NAMES) or "fieldmark bench engine",
        )
    if (rows or kept) and name not in ("learner", "heads"):
        raise ConfigurationError(
            f"--rows and --out belong to the benchmarks learner and heads, not to {name}.",
            remedy="Leave them out, or run: fieldmark bench learner",
        )
    from fieldmark.simulations.bench.deploy import bench_deploy
    from fieldmark.simulations.bench.dp import bench_dp
    from fieldmark.simulations.bench.engine import bench_engine
    from fieldmark.simulations.bench.features import bench_features
    from fieldmark.simulations.bench.gpu import bench_gpu
    from fieldmark.simulations.bench.growth import bench_growth
    from fieldmark.simulations.bench.heads import KEPT as KEPT_HEADS
    from fieldmark.simulations.bench.heads import bench_heads
    from fieldmark.simulations.bench.learner import KEPT, bench_learner
    from fieldmark.simulations.bench.rounds import bench_rounds
    from fieldmark.simulations.bench.secure import bench_secure
    from fieldmark.simulations.bench.selection import bench_selection
    from fieldmark.simulations.bench.unknown import bench_unknown
    from fieldmark.simulations.bench.wire import bench_wire

    runners = {
        "engine": bench_engine,
        "dp": bench_dp,
        "deploy": bench_deploy,
        "rounds": bench_rounds,
        "secure": bench_secure,
        "wire": bench_wire,
        "learner": lambda: bench_learner(rows, kept or KEPT, say),
        "selection": lambda: bench_selection(say),
        "unknown": lambda: bench_unknown(say),
        "heads": lambda: bench_heads(rows, kept or KEPT_HEADS, say),
        "features": bench_features,
        "gpu": bench_gpu,
        "scale": lambda: bench_growth(say),
    }
    chosen = NAMES if name == "all" else (name,)
    return [{"name": each, "machine": machine(), "figures": runners[each]()} for each in chosen]


def machine() -> str:
    """One line about this machine."""
    from fieldmark.simulations.workers import available_cores

    return f"{platform.machine()}, {len(available_cores())} cores, {platform.platform()}"


def figure(
    value: float, reference: float | None, unit: str, how: str
) -> dict[str, float | str | None]:
    """One figure as a benchmark prints it."""
    ratio = value / reference if reference else None
    return {
        "value": round(value, 6),
        "reference": None if reference is None else round(reference, 6),
        "ratio": None if ratio is None else round(ratio, 4),
        "unit": unit,
        "how": how,
    }


def show(results: list[dict[str, Any]]) -> None:
    """Print benchmarks as tables."""
    from rich.console import Console
    from rich.table import Table

    from fieldmark.simulations.bench.learner import show_learner

    console = Console()
    for result in results:
        if result["name"] == "learner":
            show_learner(result["figures"])
            continue
        table = Table(title=f"{result['name']} on {result['machine']}")
        for column in ("figure", "value", "reference", "ratio", "unit", "how"):
            table.add_column(column, overflow="fold")
        for name, entry in result["figures"].items():
            cells = (entry["value"], entry["reference"], entry["ratio"])
            numbers = ["-" if cell is None else f"{cell:.4g}" for cell in cells]
            table.add_row(name, *numbers, entry["unit"], entry["how"])
        console.print(table)


def check_rows(rows: Sequence[str], known: Iterable[str], what: str) -> None:
    """Check the names of ``--rows``.

    Args:
        rows: As given.
        known: All names.
        what: One of them in words, such as "row of the ablation".

    Raises:
        ConfigurationError: for an unknown name.
    """
    names = list(known)
    for name in rows:
        if name not in names:
            raise ConfigurationError(
                f"--rows names '{name}', which is no {what}.",
                remedy=f"{nearest(name, names)} There are: {', '.join(names)}.".strip(),
            )
