"""The Weights & Biases tracker, offline: files that a person can upload with ``wandb sync``.

No information on the machine, its code or its packages is collected.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

# Set before the import, which reads it.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

import wandb

from fgvc_core.components import TRACKERS

if TYPE_CHECKING:
    from fieldmark.server.tracking.tracker import RunFacts


@TRACKERS.register("wandb")
class WeightsAndBiases:
    """Settings as the configuration, metrics by round, notes in the summary.

    Args:
        where: A folder; "" is the run's own.
        facts: Of the run.
    """

    def __init__(self, where: str, facts: "RunFacts") -> None:
        folder = Path(where) if where else facts.run_dir / "tracking"
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            mode="offline",
            console="off",
            silent=True,
            disable_code=True,
            save_code=False,
            disable_git=True,
            disable_job_creation=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
        )
        self._run = wandb.init(
            dir=str(folder),
            project=facts.project,
            name=facts.name,
            id=facts.run,
            resume="allow" if facts.done else None,
            config=facts.settings,
            settings=settings,
        )
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")
        self._notes: list[str] = []

    def figures(self, round_: int, values: dict[str, float]) -> None:
        """Log the metrics of a round."""
        self._run.log({**values, "round": round_})

    def note(self, round_: int, text: str) -> None:
        """Log a note."""
        self._notes.append(f"round {round_}: {text}")
        self._run.summary["out_of_the_ordinary"] = "\n".join(self._notes[-100:])

    def finish(self, state: str, values: dict[str, float]) -> None:
        """Log the final metrics and the state."""
        self._run.summary.update({**values, "state": state})
        self._run.finish(exit_code=0 if state == "finished" else 1)
        # Otherwise its helper process would stay until this process ends.
        wandb.teardown()
