"""Shared by the commands: options, opening a model, progress on a terminal, writing text files."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgvc_core.words import visible

if TYPE_CHECKING:
    from fgvc_core.inference.trained import TrainedModel

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable."),
]
Checkpoint = Annotated[
    Path,
    typer.Argument(help="A run's folder or a checkpoint of one.", show_default=False),
]
Weights = Annotated[
    str | None, typer.Option(help="Weights of the backbone, where the recipe's are elsewhere.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show a spinner and the time gone on standard error, if that is a terminal.

    For work whose end cannot be told; where it can, :func:`progress` shows the time left.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as spinner:
        spinner.add_task(what, total=None)
        yield


@contextmanager
def progress(
    what: str, *, ends: bool = False, waits: bool = False
) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error, if that is a terminal, and yield its callback.

    Args:
        what: The work in words.
        ends: Whether the bar goes once all is done, because another display follows it.
        waits: Whether the bar comes with the first call only, because another display precedes it.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
    task = bar.add_task(what, total=None)

    def tell(done: int, total: int) -> None:
        if waits and done < total:
            bar.start()
        bar.update(task, completed=done, total=total)
        if ends and done >= total:
            bar.stop()

    if not waits:
        bar.start()
    try:
        yield tell
    finally:
        bar.stop()


@contextmanager
def asking(otherwise: str) -> Iterator[None]:
    """Around a question to a person: where nobody can answer, what to type instead is said.

    Args:
        otherwise: How to give the answer without being asked.

    Raises:
        ConfigurationError: if standard input is no terminal and holds no answer.
    """
    from fgvc_core.errors import ConfigurationError

    try:
        yield
    except typer.Abort:
        if sys.stdin is not None and sys.stdin.isatty():
            raise
        raise ConfigurationError(
            "A question waits for a person's answer, and standard input is no terminal.",
            why="Nothing is decided in a person's place.",
            remedy=otherwise,
        ) from None


def open_model(checkpoint: Path, weights: str | None, *, whole: bool = True) -> "TrainedModel":
    """Load the model that a command works with; on standard error, whether it is internal.

    Args:
        checkpoint: A run's folder or a checkpoint of one.
        weights: The backbone's weights, if they are not where the recipe says.
        whole: Whether to refuse a checkpoint whose other tensors stayed at the sites.

    Raises:
        DataError: if the checkpoint is damaged.
        ConfigurationError: if there is none, or it is no whole model.
    """
    from fgvc_core.inference.internal import internal_note
    from fgvc_core.inference.trained import load_trained, load_whole

    trained = (load_whole if whole else load_trained)(checkpoint, weights=weights)
    if note := internal_note(trained):
        typer.echo(visible(note), err=True)
    return trained


def fitted(text: str, indent: str = "") -> str:
    """A sentence that breaks between words at the width of a terminal.

    Args:
        text: One sentence or paragraph.
        indent: What each of its lines begins with.

    Returns:
        One line where standard output is no terminal, so that programs find whole sentences.
    """
    import shutil
    import textwrap

    if not sys.stdout.isatty():
        return indent + text
    width = max(shutil.get_terminal_size().columns, 2 * len(indent) + 20)
    lines = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent,
                          break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return "\n".join(lines) or indent


def print_result(found: Mapping[str, object], lines: Sequence[str], *, as_json: bool) -> None:
    """Print a command's result on standard output: one JSON object, or lines for a person.

    Args:
        found: The result, of plain values.
        lines: The same in words.
        as_json: Whether ``--json`` was given.
    """
    import json

    for line in [json.dumps(found, indent=1)] if as_json else lines:
        typer.echo(line)


def write_text(path: Path, text: str, option: str = "--out") -> None:
    """Write the file that an option names.

    Raises:
        ConfigurationError: if the file cannot be written.
    """
    from fgvc_core.errors import ConfigurationError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"{option} '{path}' cannot be written: {error.strerror}.",
            remedy="Name a file in a folder that exists and that you may write to.",
        ) from None


DATA_SETS = (
    *("aircraft", "cars", "coco", "cub", "cvat", "folder", "ham10000", "inaturalist"),
    *("label-studio", "manifest"),
)
"""Fieldmark's own data sets that are read from a folder; the registry is not imported for help."""


def data_sets_for_help() -> str:
    """Names of data sets, as :func:`names_for_help`."""
    return names_for_help("fieldmark.data_sets", *DATA_SETS)


def names_for_help(group: str, *built_in: str) -> str:
    """Names of components, comma-separated; installed extensions only if help is shown.

    Args:
        group: The entry-point group, for instance ``fieldmark.trackers``.
        built_in: Names of Fieldmark's own components.
    """
    others = {p.name for p in entry_points(group=group)} if "--help" in sys.argv else set()
    return ", ".join((*built_in, *sorted(others - {*built_in})))
