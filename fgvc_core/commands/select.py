"""``fieldmark data select``: rank unlabeled pictures by how useful a label would be."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgvc_core.commands.terminal import Checkpoint, Json, Weights, open_model, progress, write_text
from fgvc_core.words import visible

if TYPE_CHECKING:
    from fgvc_core.inference.selecting import Pick


def select(
    checkpoint: Checkpoint,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]",
            help="Pictures to choose from, at any depth. Without one: the data set's pool.",
            show_default=False,
        ),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(metavar="HOME", help="Take the data that this site's site.toml names."),
    ] = None,
    count: Annotated[int, typer.Option(help="How many pictures.", min=1)] = 20,
    method: Annotated[
        str,
        typer.Option(
            help="margin and entropy: what the model is least sure of; core-set: what is least "
            "like anything labeled; random: for comparison."
        ),
    ] = "margin",
    seed: Annotated[int, typer.Option(help="Of random picks.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the picks as CSV.")
    ] = None,
    weights: Weights = None,
    json_: Json = False,
) -> None:
    """Which unlabeled pictures should be labeled next, by what a trained model makes of them.

    The choice is made here, with the pictures that are here: nothing leaves.

    Example: fieldmark data select runs/demo new-pictures --count 50 --out to-label.csv
    """
    from fgvc_core.data.cache import cache_folder
    from fgvc_core.errors import ConfigurationError, nearest
    from fgvc_core.inference.selecting import as_csv, data_set, folder_candidates
    from fgvc_core.inference.selecting import select as choose
    from fgvc_core.training.acquisition import METHODS

    if method not in METHODS:
        raise ConfigurationError(
            f"--method '{method}' is not one of {', '.join(METHODS)}.",
            remedy=nearest(method, METHODS, 1) or "For instance: --method margin",
        )
    cache = cache_folder()
    with progress("Looking at the pictures") as tell:
        trained = open_model(checkpoint, weights, whole=False)
        # The data set knows which pictures are labeled; a folder alone does not.
        known = data_set(trained, site, cache) if folder is None or site is not None else None
        labelled = None if known is None else known.where("train")
        if folder is not None:
            candidates = folder_candidates(folder, trained.class_names, trained.recipe.data)
        else:
            assert known is not None
            candidates = known.where("pool")
        picks = choose(trained, candidates, labelled, method, count, cache, seed, tell)
    if out is not None:
        write_text(out, as_csv(picks))
    if json_:
        result = {"method": method, "of": len(candidates), "picks": [asdict(p) for p in picks]}
        typer.echo(json.dumps(result, indent=1))
        return
    _show(picks, method, len(candidates))
    if out is not None:
        typer.echo(f"picks: {out}")


def _show(picks: "list[Pick]", method: str, total: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from fgvc_core.console import PlainConsole

    table = Table(title=f"{len(picks)} of {total:,} pictures, by {method}")
    for column in ("rank", "picture", method, "taken for", "share"):
        right = column in ("rank", method, "share")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for each in picks:
        table.add_row(
            str(each.rank),
            Text(visible(each.id)),
            f"{each.score:.4g}",
            Text(visible(each.predicted)),
            f"{each.share:.2f}",
        )
    PlainConsole().print(table)
