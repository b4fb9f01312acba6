"""Benchmarks: each figure beside a reference that is measured in the same run."""

import platform
from typing import Any

from fgvc_core.errors import ConfigurationError, nearest

NAMES = ("engine", "dp", "deploy", "rounds", "wire", "selection")


def run_benches(name: str) -> list[dict[str, Any]]:
    """Run one benchmark, or all of them.

    Returns:
        One entry a benchmark: ``name``, ``machine``, and ``figures``, each with
        ``value``, ``reference``, ``ratio`` (value / reference, None without one),
        ``unit`` and ``how``.

    Raises:
        ConfigurationError: if there is no benchmark of that name.
    """
    if name != "all" and name not in NAMES:
        raise ConfigurationError(
            f"There is no benchmark '{name}'; there are {', '.join(NAMES)} and all.",
            remedy=nearest(name, NAMES) or "fieldmark bench engine",
        )
    from simulations.bench.deploy import bench_deploy
    from simulations.bench.dp import bench_dp
    from simulations.bench.engine import bench_engine
    from simulations.bench.rounds import bench_rounds
    from simulations.bench.selection import bench_selection
    from simulations.bench.wire import bench_wire

    runners = {
        "engine": bench_engine,
        "dp": bench_dp,
        "deploy": bench_deploy,
        "rounds": bench_rounds,
        "wire": bench_wire,
        "selection": bench_selection,
    }
    chosen = NAMES if name == "all" else (name,)
    return [{"name": each, "machine": machine(), "figures": runners[each]()} for each in chosen]


def machine() -> str:
    """The machine in a line."""
    from simulations.workers import available_cores

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

    console = Console()
    for result in results:
        table = Table(title=f"{result['name']} on {result['machine']}")
        for column in ("figure", "value", "reference", "ratio", "unit", "how"):
            table.add_column(column, overflow="fold")
        for name, entry in result["figures"].items():
            cells = (entry["value"], entry["reference"], entry["ratio"])
            numbers = ["-" if cell is None else f"{cell:.4g}" for cell in cells]
            table.add_row(name, *numbers, entry["unit"], entry["how"])
        console.print(table)
