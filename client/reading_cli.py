"""Command ``site reading``, and the step of ``site join`` that settles how pictures are read."""

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgvc_core.commands.terminal import Json, asking, data_sets_for_help
from fgvc_core.words import visible

if TYPE_CHECKING:
    from fgvc_core.protocol.kit import StartKit
    from fieldmark.client.deployment.joining import Answers

Home = Annotated[
    Path, typer.Argument(help="The site's home, the folder with site.toml.", metavar="DIR")
]
Said = dict[str, Any]
"""Settings of ``[data]`` that a command line gives, as :func:`takes_reading` collects them."""

_Text = str | None
READING: dict[str, Any] = {
    "kind": Annotated[
        _Text,
        typer.Option(help=f"{data_sets_for_help()}; else it is recognized."),
    ],
    "manifest": Annotated[
        _Text, typer.Option(help="The CSV that lists the pictures, relative to the data.")
    ],
    "path_column": Annotated[_Text, typer.Option(help="Its column of picture paths.")],
    "path_template": Annotated[
        _Text,
        typer.Option(help="How such a value becomes a path, for instance 'images/{path}.jpg'."),
    ],
    "label_column": Annotated[_Text, typer.Option(help="Its column of labels.")],
    "subject_column": Annotated[
        _Text, typer.Option(help="Its column that says which patient, lesion or animal it is.")
    ],
    "split_column": Annotated[
        _Text, typer.Option(help="Its column that says train, test or pool.")
    ],
    "site_column": Annotated[
        _Text, typer.Option(help="In a manifest of several sites: whose a picture is.")
    ],
    "site_value": Annotated[
        _Text, typer.Option(help="This site's value there; by default its name.")
    ],
    "map_label": Annotated[
        list[str] | None,
        typer.Option(
            metavar="OWN=CLASS",
            help="This site's label -> the federation's class name, or '-> none'; repeatable.",
        ),
    ],
    "split": Annotated[
        _Text,
        typer.Option(help="own: follow the data's own test split; none: train on every picture."),
    ],
    "faults": Annotated[
        _Text, typer.Option(help="refuse or leave-out: what a picture at fault does to a run.")
    ],
}
"""The options by which a command line says how pictures are read."""


def takes_reading(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :data:`READING` in place of its parameter ``said``.

    The command gets those that were given, by name.
    """
    shown = inspect.signature(command)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in READING.items()
    ]
    parameters: list[inspect.Parameter] = []
    for parameter in shown.parameters.values():
        parameters += options if parameter.name == "said" else [parameter]

    @wraps(command)
    def with_reading(**values: Any) -> None:
        given = {name: values.pop(name) for name in READING}
        command(**values, said={name: v for name, v in given.items() if v is not None})

    # The command line is made from this signature.
    with_reading.__signature__ = shown.replace(parameters=parameters)  # type: ignore[attr-defined]
    return with_reading


def reading_said(given: Said, recipe: Path | None = None) -> Said:
    """Settings of ``[data]`` from the options that were given and a proposing recipe."""
    from fgvc_core.recipe import load_recipe
    from fieldmark.client.recognition import label_map_of, proposed_by

    said = {} if recipe is None else proposed_by(load_recipe(recipe))
    said |= {name: value for name, value in given.items() if name != "map_label"}
    if given.get("map_label"):
        said["label_map"] = {**said.get("label_map", {}), **label_map_of(given["map_label"])}
    return said


def settle_reading(kit: "StartKit", answers: "Answers", said: Said, *, ask: bool) -> "Answers":
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
    right = True
    if ask:
        with asking("Look at what is shown above; if it is right, give --yes."):
            right = typer.confirm("Is that right?", default=True, err=True)
    if not right:
        typer.echo(
            "Nothing was made. Say how with --kind, --manifest, --label-column, "
            "--subject-column, --map-label and the others of 'fieldmark site join --help'.",
            err=True,
        )
        raise typer.Exit(2)
    return answers


@takes_reading
def reading(
    home: Home,
    *,
    said: Said,
    save: Annotated[
        bool, typer.Option("--save", help="Write it into site.toml; else it is only shown.")
    ] = False,
    json_: Json = False,
) -> None:
    """Show how this site's pictures are read, what is left out and why; --save changes it.

    Everything shown stays here: it holds true counts. Which pictures there are, and who is one
    unit, cannot be changed once the ledger was charged under it; labels can.

    Example: fieldmark site reading lyon --map-label 'Parus major=Great tit' --save
    """
    from fieldmark.client.recognition import save_reading, understand, with_reading
    from fieldmark.client.site import Site

    site = Site.open(home)
    changed = with_reading(site, reading_said(said))
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
