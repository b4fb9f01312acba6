"""The ``fieldmark`` command line, which mounts the commands of each package.

The command modules import nothing heavy until a command runs.
"""

import errno
import io
import os
import signal
import sys
from types import FrameType
from typing import Annotated, Any

import click
import typer
import typer.core
import typer.main
from rich.console import Console

from fgvc_core import __version__
from fgvc_core.cli import data_app
from fgvc_core.commands.doctor import doctor
from fgvc_core.commands.evaluate import evaluate
from fgvc_core.commands.explain import explain
from fgvc_core.commands.export import export_app
from fgvc_core.commands.predict import predict
from fgvc_core.errors import FieldmarkError, RunFailed
from fgvc_core.files import FULL
from fgvc_core.supervision import end_at_once
from fgvc_core.words import visible
from fieldmark.client.cli import site_app
from fieldmark.library import quiet_flower
from fieldmark.server.cli import report, server_app
from fieldmark.simulations.beginning.cli import explain_recipe, new, recipes
from fieldmark.simulations.cli import bench, compare, simulate
from fieldmark.simulations.sweeping.cli import sweep


class _Argument(typer.core.TyperArgument):
    """An argument that keeps its words.

    click 8.5 sets them itself, and a typer below 0.21, which is what Flower takes, does not hand
    them on: 'fieldmark simulate --help' would not say what RECIPE is.
    """

    def __init__(self, *, help: str | None = None, **others: Any) -> None:
        super().__init__(help=help, **others)
        self.help = help


typer.main.TyperArgument = _Argument  # type: ignore[attr-defined, misc]

app = typer.Typer(
    name="fieldmark",
    # click suggests the nearest command, too, and both would.
    suggest_commands=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 2 wrong usage or configuration, or a run, recipe or home that is "
    "not there, 3 bad or missing data, 4 refused by privacy policy or budget, 5 peer not reached "
    "or not trusted, 6 the run failed or was interrupted.",
)
app.command()(new)
app.command()(recipes)
app.command()(explain_recipe)
app.command()(simulate)
app.command()(compare)
app.command()(sweep)
app.command()(report)
app.command()(bench)
app.command()(predict)
app.command()(evaluate)
app.command()(explain)
app.command()(doctor)
app.add_typer(data_app, name="data")
app.add_typer(export_app, name="export")
app.add_typer(server_app, name="server")
app.add_typer(site_app, name="site")


def _version(wanted: bool) -> None:
    if wanted:
        from fgvc_core.protocol.code import code_digest

        typer.echo(f"fieldmark {__version__} (code {code_digest()})")
        raise typer.Exit


START = """\
Fieldmark trains one model of look-alikes over many sites, and no picture leaves its site.

  See it work          fieldmark recipes
                       fieldmark simulate RECIPE
  Your own pictures    fieldmark new mine --data PICTURES
                       fieldmark simulate mine/recipe.toml
  Use a model          fieldmark predict runs/mine PICTURES
  Lead a federation    fieldmark server init HOME
  Take part as a site  fieldmark site key KEYS, then fieldmark site join KIT
  Something is odd     fieldmark doctor

Every command: fieldmark --help. One command with an example: fieldmark simulate --help.
Completion with Tab, for bash, zsh and fish: fieldmark --install-completion"""
"""What ``fieldmark`` alone shows."""


@app.callback()
def options(
    context: typer.Context,
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
    if context.invoked_subcommand is None:
        typer.echo(START)


def main() -> None:
    """Run the command line; a user error ends with one message and an exit code."""
    quiet_flower()
    _end_on_second_interrupt()
    for stream in (sys.stdout, sys.stderr):
        # A terminal in Latin-1, or a file name whose bytes are no UTF-8, must not end a command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except FieldmarkError as error:
        _tell(error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except BrokenPipeError:
        # Whoever read this, for instance 'head', has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(RunFailed.exit_code)
    except OSError as error:
        _tell(_of_the_system(error))
        sys.exit(RunFailed.exit_code)
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


def _of_the_system(error: OSError) -> FieldmarkError:
    """A failure of disk, rights or memory, as an error with a remedy."""
    where = f"'{os.fsdecode(error.filename)}': " if error.filename else ""
    remedy = "Check the path, its rights and its disk, and try again."
    if error.errno in FULL:
        remedy = "Free space there, or name another disk; a run goes on with --resume."
    elif error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        remedy = "End other programs, or raise the limit (ulimit), and try again."
    elif error.errno == errno.EROFS:
        remedy = "Mount it for writing, or name another folder."
    return RunFailed(
        f"The system refused: {where}{error.strerror or error}.",
        why="What was written before is whole.",
        remedy=remedy,
    )


def _tell(error: FieldmarkError) -> None:
    console = Console(stderr=True)
    for label, text in (("Error", error.what), ("Why", error.why), ("Instead", error.remedy)):
        if text:
            console.print(f"[bold]{label}:[/bold] ", end="")
            text = "\n".join(visible(line) for line in text.split("\n"))
            console.print(text, markup=False, highlight=False, soft_wrap=True)
