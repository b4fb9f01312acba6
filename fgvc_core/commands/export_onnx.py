"""``fieldmark export onnx``: float and int8 graphs for other runtimes, checked before written."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgvc_core.commands.terminal import Json, Overrides, busy

if TYPE_CHECKING:
    from fgvc_core.export.judging import Judges
    from fgvc_core.inference.trained import TrainedModel

_MOST_CALIBRATION = 256

Checkpoint = Annotated[
    Path,
    typer.Argument(help="A run's folder or a checkpoint of one.", show_default=False),
]
Calibrate = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        help="A picture or folder that int8's ranges are taken from; repeatable. At most 256 are "
        "used, spread over all.",
    ),
]
Check = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        help="Pictures to check on in place of the test split of the recipe's data; repeatable.",
    ),
]
Weights = Annotated[
    str | None, typer.Option(help="Weights of the backbone, where the recipe's are elsewhere.")
]
Public = Annotated[
    bool,
    typer.Option(
        "--calibration-is-public",
        help="Your word that those pictures are public: needed for a model trained under "
        "differential privacy.",
    ),
]


def onnx(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the files go.")],
    int8: Annotated[bool, typer.Option("--int8", help="Also an int8 graph.")] = False,
    calibrate: Calibrate = None,
    calibration_is_public: Public = False,
    check: Check = None,
    set_: Overrides = None,
    weights: Weights = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write even what the checks refuse.")
    ] = False,
    json_: Json = False,
) -> None:
    """Write the model as ONNX, once it gives PyTorch's answers.

    Normalisation is inside the graph (uint8 squares in, logits out), class names and the way to
    a square are in its metadata. The float graph has to match PyTorch to 1e-4 with every answer
    equal; the int8 one may lose 0.01 of top-1 and weigh 0.30 of the float one. A sample that
    runs them with onnxruntime alone is put beside them.

    Example: fieldmark export onnx runs/demo --out phone --int8 --calibrate birds/train
    """
    from fgvc_core.export.onnx_export import make_onnx, write_onnx
    from fgvc_core.inference.trained import load_trained

    trained = load_trained(checkpoint, weights=weights)
    calibration = calibration_pictures(trained, int8, calibrate)
    judges = judging_pictures(trained, check, set_)
    with busy("Exporting and checking"):
        files = make_onnx(trained, judges, calibration, public=calibration_is_public, force=force)
    paths = write_onnx(files, trained, out)
    if json_:
        typer.echo(json.dumps(files.figures | {"files": [str(p) for p in paths]}, indent=1))
        return
    show(files.figures)
    typer.echo("files: " + ", ".join(str(path) for path in paths))


def calibration_pictures(
    trained: "TrainedModel", int8: bool, calibrate: list[Path] | None
) -> "Judges | None":
    """The pictures that int8 is calibrated on; None where it is not asked for.

    Raises:
        ConfigurationError: for --int8 without pictures, or pictures without --int8.
    """
    from fgvc_core.errors import ConfigurationError
    from fgvc_core.export.judging import named

    if not int8 and not calibrate:
        return None
    if not int8 or not calibrate:
        raise ConfigurationError(
            "--int8 and --calibrate go together.",
            why="The range of each activation is taken from pictures that you name.",
            remedy="For instance: --int8 --calibrate birds/train",
        )
    return named(trained, calibrate, _MOST_CALIBRATION)


def judging_pictures(
    trained: "TrainedModel", check: list[Path] | None, overrides: list[str] | None
) -> "Judges":
    """The pictures that an export is checked on."""
    from fgvc_core.export.judging import held_out, named

    return named(trained, check) if check else held_out(trained, overrides or [])


def show(figures: dict[str, Any]) -> None:
    """The table of an export."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{figures['pictures']:,} pictures of {figures['judged_on']}; "
        f"{figures['multiply_adds'] / 1e6:,.1f} million multiply-adds a picture"
    )
    columns = ("top-1", "same answer", "largest difference", "size", "one picture")
    table.add_column("model")
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in figures["models"].items():
        table.add_row(
            name,
            "unknown" if row["top1"] is None else f"{row['top1']:.4f}",
            f"{row['agreement']:.2%}",
            f"{row['max_difference']:.2g}",
            f"{row['bytes'] / 1000:,.0f} kB",
            f"{row['latency_ms']:.2f} ms",
        )
    console = Console()
    console.print(table)
    if "int8" in figures:
        how = figures["int8"]
        console.print(
            f"int8: {how['way']}, calibrated on {how['pictures']} pictures; "
            f"{how['size_ratio']:.3f} of the float file"
        )
    if figures["forced"]:
        console.print("[bold yellow]--force: what the checks would refuse was written.[/]")
