"""The ``fieldmark`` command line, which mounts the commands of each package.

The command modules import nothing heavy until a command runs.
"""

import signal
import sys
from types import FrameType
from typing import Annotated

import click
import typer
from rich.console import Console

from fgvc_core import __version__
from fgvc_core.cli import data_app
from fgvc_core.commands.evaluate import evaluate
from fgvc_core.commands.explain import explain
from fgvc_core.commands.export import export_app
from fgvc_core.commands.predict import predict
from fgvc_core.errors import FieldmarkError
from fgvc_core.supervision import end_at_once
from fgvc_core.words import visible
from fieldmark.client.cli import site_app
from fieldmark.library import quiet_flower
from fieldmark.server.cli import report, server_app
from fieldmark.simulations.cli import bench, compare, simulate
from fieldmark.simulations.sweeping.cli import sweep

app = typer.Typer(
    name="fieldmark",
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


def _version(wanted: bool) -> None:
    if wanted:
        from fgvc_core.protocol.code import code_digest

        typer.echo(f"fieldmark {__version__} (code {code_digest()})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_version, help="Version and digest of the code."
        ),
    ] = False,
) -> None:
    """Federated learning for fine-grained visual classification.

    Tell look-alikes apart together, without a picture leaving its site.
    """


def main() -> None:
    """Run the command line; a user error ends with one message and an exit code."""
    quiet_flower()
    _end_on_second_interrupt()
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


def _end_on_second_interrupt() -> None:
    """Make the first Ctrl-C a KeyboardInterrupt, and a second one the end of the process.

    After the first, what is being computed is finished and the last checkpoint is kept, which may
    take as long as one site's round.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        # A shell that starts a command in the background has it ignore Ctrl-C.
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        def end(number: int, frame: FrameType | None) -> None:
            end_at_once()

        signal.signal(signal.SIGINT, end)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


def _tell(error: FieldmarkError) -> None:
    console = Console(stderr=True)
    for label, text in (("Error", error.what), ("Why", error.why), ("Instead", error.remedy)):
        if text:
            console.print(f"[bold]{label}:[/bold] ", end="")
            text = "\n".join(visible(line) for line in text.split("\n"))
            console.print(text, markup=False, highlight=False, soft_wrap=True)
