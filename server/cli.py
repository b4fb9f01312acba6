"""The coordinator's commands."""

from pathlib import Path
from typing import Annotated

import typer

from fieldmark.server.deployment.cli import server_app

__all__ = ["report", "server_app"]


def report(
    run_dir: Annotated[Path, typer.Argument(help="A run's folder, for instance runs/demo.")],
) -> None:
    """Write a run's self-contained HTML report again.

    Example: fieldmark report runs/demo
    """
    from fieldmark.server.report.page import render

    typer.echo(render(run_dir))
