"""The ``fieldmark`` command line, which mounts the commands of each package.

The command modules import nothing heavy until a command runs.
"""

import sys

import click
import typer
from rich.console import Console

from fgvc_core.cli import data_app
from fgvc_core.commands.evaluate import evaluate
from fgvc_core.commands.explain import explain
from fgvc_core.commands.export import export_app
from fgvc_core.commands.predict import predict
from fgvc_core.errors import FieldmarkError
from fgvc_core.words import visible
from fieldmark.client.cli import site_app
from fieldmark.library import quiet_flower
from fieldmark.server.cli import report, server_app
from fieldmark.simulations.cli import bench, compare, simulate
from fieldmark.simulations.sweeping.cli import sweep

app = typer.Typer(
    name="fieldmark",
    help="Federated learning for fine-grained visual classification: "
    "tell look-alikes apart together, without a picture leaving its site.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 2 wrong usage or configuration, 3 bad data, "
    "4 refused by privacy policy or budget, 5 peer not reached or not trusted, 6 the run failed.",
)
app.command()(simulate)
app.command()(compare)
app.command()(sweep)
app.command()(report)
app.command()(bench)
app.command()(predict)
app.command()(evaluate)
app.command()(explain)
app.add_typer(data_app, name="data")
app.add_typer(export_app, name="export")
app.add_typer(server_app, name="server")
app.add_typer(site_app, name="site")


def main() -> None:
    """Run the command line; a user error ends with one message and an exit code."""
    quiet_flower()
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except FieldmarkError as error:
        _tell(error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        Console(stderr=True).print("Stopped.")
        sys.exit(6)


def _tell(error: FieldmarkError) -> None:
    console = Console(stderr=True)
    for label, text in (("Error", error.what), ("Why", error.why), ("Instead", error.remedy)):
        if text:
            console.print(f"[bold]{label}:[/bold] ", end="")
            text = "\n".join(visible(line) for line in text.split("\n"))
            console.print(text, markup=False, highlight=False, soft_wrap=True)
