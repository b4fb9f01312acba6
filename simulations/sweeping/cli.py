"""``fieldmark sweep``: a grid of runs over settings and seeds."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgvc_core.commands.terminal import Json

if TYPE_CHECKING:
    from fieldmark.simulations.sweeping.axes import Point
    from fieldmark.simulations.sweeping.runner import Done


def sweep(
    recipe: Annotated[
        Path, typer.Argument(help="A recipe, for instance simulations/recipes/demo.toml.")
    ],
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over", metavar="SECTION.KEY=A,B,C", help="Values to go over; several make a grid."
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Runs of each setting, from the recipe's seed on.")
    ] = 3,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting of all runs."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The sweep's folder; by default runs/NAME-sweep.")
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WHERE]", help="Events also to tensorboard, mlflow or wandb; repeatable."
        ),
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try runs again that failed before.")
    ] = False,
    json_: Json = False,
) -> None:
    """Run a recipe over a grid of settings and seeds: a table, figures, a page.

    The same command goes on where it was stopped and repeats no run that is done; more values
    or more seeds add to what is there. A run that fails is recorded, the others go on, and the
    exit code is 6.

    Example: fieldmark sweep simulations/recipes/demo.toml --over partition.alpha=0.1,0.5,5
    """
    from fieldmark.simulations.sweeping.axes import plan_points, read_axes

    axes = read_axes(over or [])
    points = plan_points(recipe, set_ or [], axes, seeds)
    from fieldmark.simulations.planning import tracked_at

    tracked = tracked_at(track or ())
    from fieldmark.simulations.sweeping.page import write_sweep
    from fieldmark.simulations.sweeping.runner import run_points

    folder = out or Path("runs") / f"{points[0].recipe.name}-sweep"
    with _telling(points, folder) as tell:

        def done(point: "Point", seconds: float) -> None:
            # Written after each run, because a sweep may take days.
            if seconds:
                write_sweep(points, axes, seeds, folder)
            tell(point, seconds)

        run_points(points, folder, retry=retry, track=tracked, done=done)
    result = write_sweep(points, axes, seeds, folder)
    if json_:
        typer.echo(json.dumps({**result, "sweep_dir": str(folder)}, indent=1))
    else:
        _show(result)
        typer.echo(f"page: {folder / 'sweep.html'}")
    _refuse_failed(result["runs"])


def _refuse_failed(runs: list[dict[str, Any]]) -> None:
    """Raise RunFailed if a run of the sweep failed; the others are done."""
    from fgvc_core.errors import RunFailed

    failed = [row for row in runs if row["state"] == "failed"]
    if failed:
        raise RunFailed(
            f"{len(failed)} of {len(runs)} runs failed; the first, '{failed[0]['run']}': "
            f"{failed[0]['reason']}",
            why="The table is without them.",
            remedy="Mend the cause, then the same command with --retry.",
        )


@contextmanager
def _telling(points: "tuple[Point, ...]", out: Path) -> "Iterator[Done]":
    """Progress: a bar on a terminal, one line per run elsewhere; both on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    from fieldmark.simulations.sweeping.table import finished, run_dir

    console = Console(stderr=True)
    columns = (
        TextColumn("runs"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[now]}"),
    )
    bar = Progress(*columns, Left(), console=console, disable=not console.is_terminal)
    task = bar.add_task("runs", total=len(points), now="")
    spent: list[float] = []
    ended = 0

    def tell(point: "Point", seconds: float) -> None:
        nonlocal ended
        ended += 1
        metrics = finished(run_dir(out, point))
        told = f"{point.name}: {_told(metrics)}"
        bar.update(task, advance=1, now=told)
        if not seconds:
            return
        spent.append(seconds)
        left = (len(points) - ended) * sum(spent) / len(spent)
        if not console.is_terminal:
            console.print(
                f"{ended}/{len(points)} {told}, {seconds:.0f} s, about {left:.0f} s left",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    with bar:
        yield tell


def _told(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "failed"
    top1 = metrics.get("top1")
    return "done" if top1 is None else f"top-1 {100 * top1:.1f} %"


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from fieldmark.simulations.sweeping.page import number, share, short_names

    keys = list(result["over"])
    private = any(entry["epsilon"] is not None for entry in result["table"])
    table = Table(title=f"{result['name']}: mean ± deviation over {len(result['seeds'])} seeds")
    for name in short_names(keys):
        table.add_column(name, overflow="fold")
    heads = [
        "runs",
        "top-1",
        "against the highest",
        "macro-F1",
        *(["epsilon"] if private else []),
        "MB moved",
        "seconds",
    ]
    for head in heads:
        table.add_column(head, justify="right")
    for entry in result["table"]:
        epsilon = [number(entry["epsilon"], entry["epsilon_deviation"])] if private else []
        table.add_row(
            *entry["settings"].values(),
            f"{entry['done']}/{entry['runs']}",
            share(entry["top1"], entry["top1_deviation"]),
            _against(entry["against_best"]),
            share(entry["macro_f1"], entry["macro_f1_deviation"]),
            *epsilon,
            number(entry["bytes"], entry["bytes_deviation"], 1e6),
            number(entry["seconds"], entry["seconds_deviation"]),
        )
    console = Console()
    console.print(table)
    if result["in_words"]:
        console.print(f"{result['in_words']}.", markup=False, highlight=False, soft_wrap=True)


def _against(told: dict[str, Any] | None) -> str:
    if told is None:
        return "-"
    if told["difference"] is None:
        return "highest"
    return f"{100 * told['difference']:+.1f}: {told['told'].split(' the best')[0]}"
