"""What the commands have in common: options, progress on a terminal, files that are written."""

import sys
from collections.abc import Callable, Iterator
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
    """A spinner on standard error, on a terminal; nothing elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on standard error, on a terminal; nothing elsewhere."""
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


def write_text(path: Path, text: str, option: str = "--out") -> None:
    """Write what an option asked for.

    Raises:
        ConfigurationError: if it cannot be written there.
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
    """Names of components; those of other distributions are looked up only where help is shown.

    Args:
        group: Of entry points, for instance ``fieldmark.trackers``.
        built_in: Names of Fieldmark's own.
    """
    others = {p.name for p in entry_points(group=group)} if "--help" in sys.argv else set()
    return ", ".join((*built_in, *sorted(others - {*built_in})))
