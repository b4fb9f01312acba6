"""The coordinator's Flower ServerApp, the same in every engine."""

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()

RUN_VARIABLE = "FIELDMARK_RUN"
"""Names the run's folder when Flower passes no run configuration (its own simulation)."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation in the folder that the run configuration or the environment names."""
    from fieldmark.server.run import run_federation

    named = context.run_config.get("run-dir") or os.environ.get(RUN_VARIABLE, "")
    run_federation(grid, Path(str(named)), quiet=bool(context.run_config.get("quiet", False)))
