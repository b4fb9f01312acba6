"""``fieldmark explain``: attribution maps for a model's answers, and tests of those maps."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgvc_core.commands.terminal import (
    Checkpoint,
    Json,
    Overrides,
    Weights,
    open_model,
    progress,
)
from fgvc_core.words import counted, visible

if TYPE_CHECKING:
    from fgvc_core.inference.trained import TrainedModel


def explain(
    checkpoint: Checkpoint,
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]...",
            help="Pictures and folders; without any, some of the test split of the model's data.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="A sheet (.png) or a page (.html).")
    ] = Path("explanations.html"),
    examples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Maximum number of pictures, spread over all; by default 8, and all in a game.",
        ),
    ] = None,
    pointing: Annotated[
        bool,
        typer.Option(
            "--pointing", help="Play the pointing game on the test split, with its controls."
        ),
    ] = False,
    method: Annotated[
        str, typer.Option(help="layercam, hirescam, gradcam or gradcam++.")
    ] = "layercam",
    stage: Annotated[
        str,
        typer.Option(
            help="Layer that maps are made from: last, a stage of the backbone, or auto (the "
            "deepest of at least 14 positions a side)."
        ),
    ] = "auto",
    tolerance: Annotated[
        float,
        typer.Option(min=0.0, max=0.5, help="--pointing: share of the side that may be missed."),
    ] = 15 / 224,
    draws: Annotated[
        int, typer.Option(min=1, help="--pointing: networks with random weights to compare with.")
    ] = 3,
    alone: Annotated[
        bool,
        typer.Option(
            "--alone", help="--pointing: maps of the true class alone, not against its runner-up."
        ),
    ] = False,
    set_: Overrides = None,
    weights: Weights = None,
    json_: Json = False,
) -> None:
    """Show where a model saw what it says, beside its second-best class.

    Five maps a picture: for the class, for the runner-up, for the one and not the other both
    ways, and the model's own attention where it has any. Answers and shares are those of
    'fieldmark predict', its calibration included. What it writes shows the pictures:
    at a site it stays there.

    Example: fieldmark explain runs/demo birds/test --out why.html
    """
    trained = open_model(checkpoint, weights, whole=False)
    if not pointing:
        _explain(trained, pictures, out, examples, set_, method, stage, json_)
        return
    if pictures:
        from fgvc_core.errors import ConfigurationError

        raise ConfigurationError(
            "--pointing takes no pictures.",
            why="It needs part locations, which the data set of the recipe has.",
            remedy="Say where the data are with --set data.path=FOLDER.",
        )
    _point(
        trained, set_, examples, json_, method=method, stage=stage, tolerance=tolerance,
        draws=draws, contrast=not alone,
    )  # fmt: skip


def _explain(
    trained: "TrainedModel",
    pictures: list[Path] | None,
    out: Path,
    examples: int | None,
    overrides: list[str] | None,
    method: str,
    stage: str,
    json_: bool,
) -> None:
    """Write the sheet of maps, and name the pictures that could not be read."""
    from fgvc_core.errors import DataError
    from fgvc_core.explain.explaining import explain_some
    from fgvc_core.explain.sheet import write_sheet
    from fgvc_core.inference.calibration import read_calibration, told_of
    from fgvc_core.inference.internal import internal_note

    faults: list[str] = []
    with progress("Explaining") as tell:
        found = explain_some(
            trained, pictures or (), overrides or (), examples or 8, method, stage, faults, tell
        )
    for fault in faults:
        typer.echo(visible(fault), err=True)
    made = (
        f"{method}, stage {stage}; red: named wrongly. Maps are relative: each is scaled to its "
        "peak."
    )
    told = told_of(read_calibration(trained.path))
    write_sheet(found, out, f"{internal_note(trained)} {made}".strip(), trained.recipe.name, told)
    if json_:
        values = {"file": str(out), "pictures": [one.as_json() for one in found]}
        typer.echo(json.dumps(values, indent=1))
    else:
        typer.echo(f"{counted(len(found), 'picture')} explained: {out}")
    if faults:
        raise typer.Exit(DataError.exit_code)


def _point(
    trained: "TrainedModel",
    overrides: list[str] | None,
    examples: int | None,
    json_: bool,
    **settings: Any,
) -> None:
    from fgvc_core.explain.explaining import held_out_pictures
    from fgvc_core.explain.pointing import Game, play

    table = held_out_pictures(trained, overrides or (), examples)
    with progress("Pointing") as tell:
        found = play(trained, table, Game(**settings), tell)
    if json_:
        typer.echo(json.dumps(found, indent=1))
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    kind = "the true class against its runner-up" if found["contrast"] else "the true class alone"
    table = Table(title=f"{found['scored']:,} pictures; maps of {kind}; {found['method']}")
    table.add_column("map")
    for column in ("on a part that distinguishes", "on any part", "energy in the box"):
        table.add_column(column, justify="right")
    names = {"trained": "this model", "random_weights": "random weights", "centre": "the centre"}
    for key, name in names.items():
        row = found[key]
        cells = (row["hit_rate"], row["any_part_hit_rate"], row["energy_in_box"])
        table.add_row(name, *("none" if cell is None else f"{cell:.3f}" for cell in cells))
    console = Console()
    console.print(table)
    ratios = " and ".join(
        f"{found[key]:.2f} x {name}"
        for key, name in (("ratio_centre", "the centre"), ("ratio_random", "random weights"))
        if found[key] is not None
    )
    console.print(f"Hit rate: {ratios or 'no control hit anything'}; a miss of "
                  f"{found['tolerance']:.3f} of the side is forgiven.")  # fmt: skip
    alike = found["rank_correlation"]
    if alike is not None:
        console.print(f"Rank correlation with maps of random weights: {alike:.2f}")
    if found["flat_maps"]:
        console.print(f"{found['flat_maps']} maps are empty and count as misses.")
    if found["unchanged_by_randomising"]:
        console.print(
            "[bold yellow]These maps hardly change when the weights are randomized: they show the "
            "picture, or the network's shape, and not what was learned.[/]"
        )
