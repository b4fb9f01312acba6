"""The coordinator's commands."""

from pathlib import Path
from typing import Annotated

import typer

from fgvc_core.commands.terminal import Json, print_result
from fieldmark.server.deployment.cli import server_app

__all__ = ["report", "server_app"]


def report(
    run_dir: Annotated[Path, typer.Argument(help="A run's folder, for instance runs/demo.")],
    json_: Json = False,
) -> None:
    """Write a run's self-contained HTML report again.

    Example: fieldmark report runs/demo
    """
    from fieldmark.server.report.page import render

    path = str(render(run_dir))
    print_result({"report": path}, (path,), as_json=json_)
