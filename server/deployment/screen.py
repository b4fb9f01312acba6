"""Display of a run on the terminal: log lines, and a live table of its sites."""

import json
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from fgvc_core.console import PlainConsole
from fgvc_core.words import visible
from fieldmark.server.deployment.following import RunView, follow
from fieldmark.server.home import CoordinatorHome
from fieldmark.server.live import LiveView
from fieldmark.server.report.page import render

_STYLES = {
    "refused": "red",
    "set aside": "red",
    "not admitted": "red",
    "removed": "red",
    "away": "yellow",
    "waited for": "yellow",
    "awaits approval": "yellow",
    "replied": "green",
}


def watch(folder: Path, run_dir: Path) -> dict[str, Any] | None:
    """Show a run until it ends.

    Returns:
        Its metrics, or None if a person pressed Ctrl-C and left it running.

    Raises:
        FieldmarkError: if the run failed, with its exit code.
    """
    console = PlainConsole(stderr=True)
    # Not entered as a context manager, so it shows no progress bar: the table takes its place.
    lines = LiveView(CoordinatorHome.open(run_dir).recipe, console)
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def tell(event: dict[str, Any], view: RunView) -> None:
        lines(event)
        if live is not None:
            live.update(site_table(view), refresh=True)

    try:
        if live is None:
            follow(folder, run_dir, tell)
        else:
            with live:
                follow(folder, run_dir, tell)
    except KeyboardInterrupt:
        return None
    # The run's own process has made it; where it could not, the reason is said here.
    if not (run_dir / "report.html").is_file():
        render(run_dir)
    metrics: dict[str, Any] = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def site_table(view: RunView) -> Table:
    """A table of a run's sites: state, rounds, refusals, bytes."""
    table = Table(title=f"round {view.round} of {view.rounds}")
    for column in ("site", "state", "rounds", "refused", "MB up", "MB down", "why"):
        table.add_column(column, justify="left" if column in ("site", "state", "why") else "right")
    for name, site in sorted(view.sites.items()):
        table.add_row(
            name,
            Text(site.state, style=_STYLES.get(site.state, "none")),
            str(site.rounds),
            str(site.refused),
            f"{site.bytes_up / 1e6:.1f}",
            f"{site.bytes_down / 1e6:.1f}",
            visible(site.reason)[:60],
        )
    return table
