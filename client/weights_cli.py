"""``fieldmark site weights``: the public weights that a site starts from."""

from pathlib import Path
from typing import Annotated

import typer

weights_app = typer.Typer(
    help="The public weights files that this site starts from.", no_args_is_help=True
)
Home = Annotated[
    Path, typer.Argument(help="The site's home, the folder with site.toml.", metavar="DIR")
]


@weights_app.command()
def add(
    file: Annotated[Path, typer.Argument(help="A .safetensors or .pth file of plain tensors.")],
    home: Home,
) -> None:
    """Put a public weights file into this site's home, and print how a recipe names it.

    Compare what is printed with the recipe's model.weights. Exit code 4 if the file holds a
    model that was fitted to this site's own pictures; add only files that none of them went into.

    Example: fieldmark site weights add backbone.safetensors lyon
    """
    from fieldmark.client.site import Site
    from fieldmark.client.weights import add_to_site

    named = add_to_site(Site.open(home), file)
    typer.echo("Every run that names it starts from it: it has to be public.", err=True)
    typer.echo(named)


@weights_app.command("list")
def list_(home: Home) -> None:
    """List the weights files that this site has, as a recipe names them.

    Example: fieldmark site weights list lyon
    """
    from fgvc_core.models.weights_folder import listed_weights
    from fieldmark.client.site import Site
    from fieldmark.client.weights import weights_folder

    for named, size in listed_weights(weights_folder(Site.open(home))):
        typer.echo(f"{named}  {size / 1e6:.1f} MB")
