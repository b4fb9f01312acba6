"""Shared by the commands: options, progress indicators on a terminal, and writing text files."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show a spinner on standard error, if that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar on standard error and yield its callback; None without a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


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


def names_for_help(group: str, *built_in: str) -> str:
    """Names of components, comma-separated; installed extensions only if help is shown.

    Args:
        group: The entry-point group, for instance ``fieldmark.trackers``.
        built_in: Names of Fieldmark's own components.
    """
    others = {p.name for p in entry_points(group=group)} if "--help" in sys.argv else set()
    return ", ".join((*built_in, *sorted(others - {*built_in})))
