"""Command ``site reading``, and the step of ``site join`` that settles how pictures are read."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgvc_core.words import visible

if TYPE_CHECKING:
    from fgvc_core.protocol.kit import StartKit
    from fieldmark.client.deployment.joining import Answers

Kind = Annotated[
    str | None,
    typer.Option(help="folder, manifest, cub, cars, aircraft, ham10000; else it is recognized."),
]
Manifest = Annotated[
    str | None, typer.Option(help="The CSV that lists the pictures, relative to the data.")
]
PathColumn = Annotated[str | None, typer.Option(help="Its column of picture paths.")]
PathTemplate = Annotated[
    str | None,
    typer.Option(help="How such a value becomes a path, for instance 'images/{path}.jpg'."),
]
LabelColumn = Annotated[str | None, typer.Option(help="Its column of labels.")]
SubjectColumn = Annotated[
    str | None, typer.Option(help="Its column that says which patient, lesion or animal it is.")
]
SplitColumn = Annotated[str | None, typer.Option(help="Its column that says train, test or pool.")]
SiteColumn = Annotated[
    str | None, typer.Option(help="In a manifest of several sites: whose a picture is.")
]
SiteValue = Annotated[
    str | None, typer.Option(help="This site's value there; by default its name.")
]
MapLabel = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OWN=CLASS",
        help="This site's label -> the federation's class name, or '-> none'; repeatable.",
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option(help="own: follow the data's own test split; none: train on every picture."),
]
Faults = Annotated[
    str | None,
    typer.Option(help="refuse or leave-out: what a picture at fault does to a run."),
]


def reading_said(
    *, map_label: list[str] | None, recipe: Path | None = None, **options: str | None
) -> dict[str, Any]:
    """Settings of ``[data]`` from command-line options and a proposing recipe."""
    from fgvc_core.recipe import load_recipe
    from fieldmark.client.recognition import label_map_of, proposed_by

    said = {} if recipe is None else proposed_by(load_recipe(recipe))
    said |= {name: value for name, value in options.items() if value is not None}
    if map_label:
        said["label_map"] = {**said.get("label_map", {}), **label_map_of(map_label)}
    return said


def settle_reading(
    kit: "StartKit", answers: "Answers", said: dict[str, Any], *, ask: bool
) -> "Answers":
    """Recognize how the pictures are read, show it and ask for confirmation.

    Returns:
        The answers with the confirmed reading.

    Raises:
        DataError: if the data cannot be read at all.
        ConfigurationError: if the layout cannot be recognized.
        typer.Exit: with code 2 if the person declines; nothing was created.
    """
    from fgvc_core.errors import DataError
    from fieldmark.client.deployment.joining import preview
    from fieldmark.client.proposing import recognize
    from fieldmark.client.provision import SPLIT_KEY_BYTES
    from fieldmark.client.recognition import passed_over, understand

    root = answers.data
    assert root is not None
    if not root.is_dir():
        raise DataError(
            f"There is no folder '{root}'.",
            remedy="Give the root of the data set with --data.",
        )
    answers = replace(
        answers,
        reading=recognize(root, said),
        split_key=os.urandom(SPLIT_KEY_BYTES),
    )
    with TemporaryDirectory(prefix="fieldmark-") as cache:
        understood = understand(preview(kit, replace(answers, cache=Path(cache))))
    for line in [*understood.lines(), *passed_over(root, answers.reading)]:
        typer.echo(visible(line), err=True)
    if not understood.pictures:
        raise DataError(
            f"'{root}' holds no picture to learn from, read like that.",
            why="Nothing was made.",
            remedy="Say how with --kind, --manifest, --label-column, --map-label and the others of "
            "'fieldmark site join --help'.",
        )
    if ask and not typer.confirm("Is that right?", default=True, err=True):
        typer.echo(
            "Nothing was made. Say how with --kind, --manifest, --label-column, "
            "--subject-column, --map-label and the others of 'fieldmark site join --help'.",
            err=True,
        )
        raise typer.Exit(2)
    return answers


def reading(
    home: Annotated[
        Path, typer.Argument(help="The site's home, the folder with site.toml.", metavar="DIR")
    ],
    kind: Kind = None,
    manifest: Manifest = None,
    path_column: PathColumn = None,
    path_template: PathTemplate = None,
    label_column: LabelColumn = None,
    subject_column: SubjectColumn = None,
    split_column: SplitColumn = None,
    site_column: SiteColumn = None,
    site_value: SiteValue = None,
    map_label: MapLabel = None,
    split: SplitOption = None,
    faults: Faults = None,
    save: Annotated[
        bool, typer.Option("--save", help="Write it into site.toml; else it is only shown.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show how this site's pictures are read, what is left out and why; --save changes it.

    Everything shown stays here: it holds true counts. Which pictures there are, and who is one
    unit, cannot be changed once the ledger was charged under it; labels can.

    Example: fieldmark site reading lyon --map-label 'Parus major=Great tit' --save
    """
    from fieldmark.client.recognition import save_reading, understand, with_reading
    from fieldmark.client.site import Site

    site = Site.open(home)
    said = reading_said(
        kind=kind,
        manifest=manifest,
        path_column=path_column,
        path_template=path_template,
        label_column=label_column,
        subject_column=subject_column,
        split_column=split_column,
        site_column=site_column,
        site_value=site_value,
        split=split,
        faults=faults,
        map_label=map_label,
    )
    changed = with_reading(site, said)
    understood = understand(changed)
    if save:
        save_reading(site, changed)
    if json_:
        shown = asdict(understood) | {"saved": save}
        typer.echo(json.dumps(shown, indent=1))
        return
    for line in understood.lines():
        typer.echo(visible(line))
    if changed.settings != site.settings and not save:
        typer.echo("Not saved: add --save to write it into site.toml.")
