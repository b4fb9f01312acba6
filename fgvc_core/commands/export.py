"""``fieldmark export``: write a model as ONNX, as an HTML page or as a Hugging Face folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgvc_core.commands.export_kit import kit, read_reply
from fgvc_core.commands.terminal import (
    Checkpoint,
    Json,
    Overrides,
    Weights,
    busy,
    progress,
    write_text,
)

if TYPE_CHECKING:
    from fgvc_core.export.judging import Judges
    from fgvc_core.export.onnx_export import OnnxFiles
    from fgvc_core.inference.trained import TrainedModel

export_app = typer.Typer(
    help="Hand a model on: to an outside site that checks it, to a phone, to a hub.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
export_app.command()(kit)
export_app.command()(read_reply)

_MOST_CALIBRATION = 256

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
Public = Annotated[
    bool,
    typer.Option(
        "--calibration-is-public",
        help="Your word that those pictures are public: needed for a model trained under "
        "differential privacy.",
    ),
]


@export_app.command()
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

    Normalization is inside the graph (uint8 squares in, logits out), class names and the way to
    a square are in its metadata. The float graph has to match PyTorch to 1e-4 with every answer
    equal; the int8 one may lose 0.01 of top-1 and weigh 0.30 of the float one. A sample that
    runs them with onnxruntime alone is put beside them.

    Example: fieldmark export onnx runs/demo --out phone --int8 --calibrate birds/train
    """
    from fgvc_core.export.onnx_export import write_onnx
    from fgvc_core.inference.internal import load_for_export

    trained = load_for_export(checkpoint, weights)
    calibration = _calibration_pictures(trained, int8, calibrate)
    judges = _judging_pictures(trained, check, set_)
    files = _graphs(trained, judges, calibration, calibration_is_public, force)
    paths = write_onnx(files, trained, out)
    if json_:
        typer.echo(json.dumps(files.figures | {"files": [str(p) for p in paths]}, indent=1))
        return
    _show(files.figures)
    typer.echo("files: " + ", ".join(str(path) for path in paths))


@export_app.command()
def browser(
    checkpoint: Checkpoint,
    runtime: Annotated[
        Path,
        typer.Option(metavar="DIR", help="node_modules, after 'npm install onnxruntime-web'."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page (.html).")],
    int8: Annotated[bool, typer.Option("--int8", help="Carry the int8 graph.")] = False,
    calibrate: Calibrate = None,
    calibration_is_public: Public = False,
    check: Check = None,
    set_: Overrides = None,
    weights: Weights = None,
    json_: Json = False,
) -> None:
    """Write one page of HTML that holds the model and classifies a dropped picture.

    It makes no request, not even for its own parts, and works from a file. Pictures stay on the
    device. The graph is checked like that of 'fieldmark export onnx'.

    Example: fieldmark export browser runs/demo --runtime node_modules --out demo.html
    """
    from fgvc_core.export.browser import find_runtime, make_page
    from fgvc_core.inference.internal import load_for_export

    find_runtime(runtime)
    trained = load_for_export(checkpoint, weights)
    calibration = _calibration_pictures(trained, int8, calibrate)
    judges = _judging_pictures(trained, check, set_)
    files = _graphs(trained, judges, calibration, calibration_is_public)
    write_text(out, make_page(trained, files.int8_bytes or files.float_bytes, runtime))
    if json_:
        told = files.figures | {"file": str(out), "bytes": out.stat().st_size}
        typer.echo(json.dumps(told, indent=1))
        return
    _show(files.figures)
    typer.echo(f"page: {out} ({out.stat().st_size / 1e6:.1f} MB)")


@export_app.command()
def folder(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder.")],
    licence: Annotated[
        str, typer.Option("--license", help="Of the weights, for instance apache-2.0.")
    ] = "other",
    evaluation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What 'fieldmark evaluate --json' printed, for the model card."
        ),
    ] = None,
    weights: Weights = None,
    json_: Json = False,
) -> None:
    """Write model.safetensors, config.json and a model card, as Hugging Face and timm want them.

    The card says what the run's files say: sites, recipe, metrics, privacy, limits. timm loads
    the folder from its path, and the logits are compared before this command is content.

    Example: fieldmark export folder runs/demo --out hub/demo --license apache-2.0
    """
    from fgvc_core.export import folder as folders
    from fgvc_core.export.card import model_card
    from fgvc_core.inference.calibration import read_calibration
    from fgvc_core.inference.internal import load_for_export

    trained = load_for_export(checkpoint, weights)
    with busy("Packing and comparing logits"):
        parts, native = folders.make_folder(trained)
    told = None if evaluation is None else _evaluation(evaluation)
    card = model_card(trained, out.name, native, licence, told)
    paths = folders.write(trained, parts, card, out)
    if json_:
        typer.echo(json.dumps({"files": [str(p) for p in paths], "timm_alone": native}, indent=1))
        return
    typer.echo("files: " + ", ".join(str(path) for path in paths))
    calibration = read_calibration(trained.path)
    temperature = None if calibration is None else calibration.temperature
    typer.echo("load it with:")
    typer.echo(folders.snippet(str(out), native, temperature), nl=False)


def _graphs(
    trained: "TrainedModel",
    judges: "Judges",
    calibration: "Judges | None",
    public: bool,
    force: bool = False,
) -> "OnnxFiles":
    """The graphs, checked against PyTorch."""
    from fgvc_core.export.onnx_export import make_onnx

    with progress("Exporting and checking") as tell:
        return make_onnx(trained, judges, calibration, public=public, force=force, tell=tell)


def _calibration_pictures(
    trained: "TrainedModel", int8: bool, calibrate: list[Path] | None
) -> "Judges | None":
    """The pictures that int8 is calibrated on; None if int8 is not asked for.

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


def _judging_pictures(
    trained: "TrainedModel", check: list[Path] | None, overrides: list[str] | None
) -> "Judges":
    """The pictures that an export is checked on."""
    from fgvc_core.export.judging import held_out, named

    with busy("Reading the pictures of the check"):
        return named(trained, check) if check else held_out(trained, overrides or [])


def _show(figures: dict[str, Any]) -> None:
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


def _evaluation(path: Path) -> dict[str, Any]:
    from fgvc_core.errors import DataError

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"--evaluation '{path}' cannot be read as JSON: {error}.",
            remedy="Give what 'fieldmark evaluate --json' printed.",
        ) from None
    if not isinstance(found, dict):
        raise DataError(
            f"--evaluation '{path}' holds no evaluation.",
            remedy="Give what 'fieldmark evaluate --json' printed.",
        )
    return found
