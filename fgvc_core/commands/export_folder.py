"""``fieldmark export folder``: a folder that a model hub takes as it is."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fgvc_core.commands.export_onnx import Checkpoint, Weights
from fgvc_core.commands.terminal import Json


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
    from fgvc_core.inference.trained import load_trained

    trained = load_trained(checkpoint, weights=weights)
    parts, native = folders.make_folder(trained)
    told = None if evaluation is None else _evaluation(evaluation)
    card = model_card(trained, out.name, native, licence, told)
    paths = folders.write(trained, parts, card, out)
    if json_:
        typer.echo(json.dumps({"files": [str(p) for p in paths], "timm_alone": native}, indent=1))
        return
    typer.echo("files: " + ", ".join(str(path) for path in paths))
    typer.echo("load it with:")
    typer.echo(folders.snippet(str(out), native), nl=False)


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
