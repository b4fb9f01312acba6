"""``fieldmark data``: write the embedded data set, check a data set, preview a partition."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgvc_core.commands.select import select
from fgvc_core.commands.terminal import (
    Json,
    Overrides,
    busy,
    data_sets_for_help,
    print_result,
    progress,
    write_text,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_BAD_DATA = 3

data_app = typer.Typer(
    help="Data sets: write the embedded one as files, check a tree, preview a partition.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


data_app.command()(select)


@data_app.command()
def make(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A folder that is new or empty.", show_default=False),
    ],
    size: Annotated[
        int, typer.Option(min=16, max=1024, help="Side of the pictures in pixels.")
    ] = 128,
    train: Annotated[
        int, typer.Option(min=10, max=200_000, help="Labeled training pictures.")
    ] = 1500,
    test: Annotated[int, typer.Option(min=10, max=200_000, help="Labeled test pictures.")] = 500,
    pool: Annotated[int, typer.Option(min=0, max=200_000, help="Unlabeled pictures.")] = 0,
    seed: Annotated[int, typer.Option(help="Another seed draws other pictures.")] = 2026,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a contact sheet (.png).")
    ] = None,
    json_: Json = False,
) -> None:
    """Write the embedded set "fieldmarks" as real files.

    Class folders under train/ and test/, and manifest.csv with subjects,
    sites and every other column: data.name=folder reads the tree, and so
    does data.name=manifest.

    Example: fieldmark data make birds --train 600 --test 200 --sheet birds.png
    """
    from fgvc_core.data.catalogue import load_table
    from fgvc_core.data.settings import DataSettings
    from fgvc_core.data.writing import refuse_full, write_tree
    from fgvc_core.words import counted

    settings = DataSettings.read(
        {
            "image_size": size,
            "fieldmarks_train": train,
            "fieldmarks_test": test,
            "fieldmarks_pool": pool,
            "fieldmarks_seed": seed,
        },
        "fieldmark data make",
    )
    refuse_full(folder)
    if sheet is not None:
        _draw_sheet(sheet, seed)
    # The pictures are written to the folder, so a copy in the user's cache is not needed.
    with tempfile.TemporaryDirectory() as cache:
        with busy("Drawing pictures"):
            table = load_table(settings, Path(cache))
        with progress("Writing pictures") as tell:
            write_tree(table, folder, tell)
    told = f"{counted(len(table), 'picture')} of {table.num_classes} classes in {folder}"
    found = {"folder": str(folder), "pictures": len(table), "classes": table.num_classes}
    print_result(found, (told,), as_json=json_)


@data_app.command()
def check(
    path: Annotated[Path, typer.Argument(help="The data set's root folder.", show_default=False)],
    name: Annotated[
        str,
        typer.Option(
            help=f"How it is laid out: {data_sets_for_help()}; auto: told from its files."
        ),
    ] = "auto",
    set_: Overrides = None,
    json_: Json = False,
) -> None:
    """Count what a data set holds and say what is wrong with it.

    Looks for missing, damaged and refused pictures (each is decoded to its
    end), labels out of range or missing, one picture under two labels, and
    subjects in two splits: exit code 3 if there are any. Notes byte-equal
    pictures, tiny classes and unequal ones.

    Example: fieldmark data check CUB_200_2011
    """
    from fgvc_core.console import PlainConsole
    from fgvc_core.data.cache import cache_folder
    from fgvc_core.data.catalogue import load_table
    from fgvc_core.data.check import check_table
    from fgvc_core.data.published import beside_published
    from fgvc_core.data.recognising import recognise
    from fgvc_core.data.showing import show_check
    from fgvc_core.recipe import parse_recipe

    overrides = [f"data.name={recognise(path) if name == 'auto' else name}", *(set_ or [])]
    settings = parse_recipe("", overrides, "fieldmark data check").data
    settings = settings.model_copy(update={"path": str(path)})
    table = load_table(settings, cache_folder(), require_pictures=False)
    with progress("Decoding pictures") as tell:
        report = check_table(table, tell, settings.max_left_out)
    published = beside_published(settings.name, report.splits)
    if json_:
        typer.echo(json.dumps({**report.as_json(), "published": published}, indent=1))
    else:
        show_check(report, PlainConsole(), published)
        if name == "auto" and settings.name == "folder" and (path / settings.manifest).is_file():
            # 'new' and 'site join' read by the table, which has subjects where folders have none.
            typer.echo(
                f"'{settings.manifest}' is beside the folders, and 'new' and 'site join' read by "
                "it: --name manifest checks it so."
            )
    if report.faults():
        raise typer.Exit(_BAD_DATA)


@data_app.command()
def partition(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="A recipe, for instance simulations/recipes/demo.toml.", show_default=False
        ),
    ],
    set_: Overrides = None,
    level: Annotated[
        str, typer.Option(help="Count by this level of the taxonomy instead of by class.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw it as a picture (.svg).")
    ] = None,
    json_: Json = False,
) -> None:
    """Preview which simulated site holds what; kin stand together where there is a taxonomy.

    Example: fieldmark data partition simulations/recipes/demo.toml --out who.svg
    """
    from fgvc_core.console import PlainConsole
    from fgvc_core.data.cache import cache_folder
    from fgvc_core.data.catalogue import load_table
    from fgvc_core.data.partition import partition as deal
    from fgvc_core.data.partition_figure import draw_partition
    from fgvc_core.data.partition_levels import at_level, families, kin_order
    from fgvc_core.data.showing import show_partition
    from fgvc_core.recipe import load_recipe
    from fgvc_core.seeds import derive_seed

    resolved = load_recipe(recipe, set_ or [])
    with busy("Reading the table"):
        train = load_table(resolved.data, cache_folder()).where("train")
    # The same seed that a simulation of this recipe uses.
    dealt = deal(train, resolved.partition, derive_seed(resolved.seed, "partition"))
    counts = {site: train.take(at).class_counts_K() for site, at in dealt.items()}
    subjects = {site: len(set(train.take(at).subjects)) for site, at in dealt.items()}
    title = f"{resolved.data.name}, {_describe(resolved.partition.model_dump())}"
    names, groups = train.class_names, families(train)
    if level:
        counts, names = at_level(counts, train, level)
        title, groups = f"{title}, by {level}", []
    if out is not None:
        order = range(len(names)) if level else kin_order(train)
        drawn = {site: counts_K[list(order)] for site, counts_K in counts.items()}
        write_text(out, draw_partition(drawn, [names[k] for k in order], title, groups))
    if json_:
        typer.echo(json.dumps(_as_json(title, counts, subjects, names), indent=1))
        return
    show_partition(counts, subjects, names, title, PlainConsole())
    if out is not None:
        typer.echo(f"picture: {out}")


def _describe(settings: dict[str, Any]) -> str:
    scheme = settings["scheme"]
    detail = {
        "iid": "",
        "dirichlet": f" alpha {settings['alpha']:g}",
        "quantity": f" alpha {settings['alpha']:g}",
        "pathological": f" {settings['classes_per_site']} classes a site",
        "column": f" '{settings['column']}'",
    }[scheme]
    return f"{scheme}{detail}"


def _as_json(
    title: str,
    counts: "dict[str, NDArray[np.int64]]",
    subjects: dict[str, int],
    class_names: tuple[str, ...],
) -> dict[str, Any]:
    sites = {
        site: {
            "examples": int(counts_K.sum()),
            "subjects": subjects[site],
            "classes": {
                name: count
                for name, count in zip(class_names, counts_K.tolist(), strict=True)
                if count
            },
        }
        for site, counts_K in counts.items()
    }
    return {"partition": title, "classes": list(class_names), "sites": sites}


def _draw_sheet(path: Path, seed: int) -> None:
    from fgvc_core.data.fieldmarks import contact_sheet
    from fgvc_core.errors import ConfigurationError

    if path.suffix.lower() != ".png":
        raise ConfigurationError(
            f"--sheet '{path}' does not end in .png.",
            why="The contact sheet is a PNG.",
            remedy=f"For instance: --sheet {path.with_suffix('.png')}",
        )
    try:
        contact_sheet(path, seed)
    except OSError as error:
        raise ConfigurationError(
            f"--sheet '{path}' cannot be written: {error.strerror}.",
            remedy="Name a file in a folder that you may write to.",
        ) from None
