"""``fieldmark export browser``: one page that classifies a dropped picture on the device."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fgvc_core.commands.export_onnx import (
    Calibrate,
    Check,
    Checkpoint,
    Public,
    Weights,
    calibration_pictures,
    judging_pictures,
    show,
)
from fgvc_core.commands.terminal import Json, Overrides, busy


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
    from fgvc_core.export.browser import find_runtime, make_page, write_page
    from fgvc_core.export.onnx_export import make_onnx
    from fgvc_core.inference.trained import load_trained

    find_runtime(runtime)
    trained = load_trained(checkpoint, weights=weights)
    calibration = calibration_pictures(trained, int8, calibrate)
    judges = judging_pictures(trained, check, set_)
    with busy("Exporting and checking"):
        files = make_onnx(trained, judges, calibration, public=calibration_is_public)
        page = make_page(trained, files.int8_bytes or files.float_bytes, runtime)
    write_page(page, out)
    if json_:
        told = files.figures | {"file": str(out), "bytes": out.stat().st_size}
        typer.echo(json.dumps(told, indent=1))
        return
    show(files.figures)
    typer.echo(f"page: {out} ({out.stat().st_size / 1e6:.1f} MB)")
