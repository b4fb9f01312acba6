"""The MLflow tracker: a SQLite file, or the user's own tracking server; telemetry is off.

MLflow 3 supports plain folders for old stores only; SQLite needs no additional package. A resumed
run is found by Fieldmark's own id.
"""

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

# Set before the import, which reads it.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Give up on an unreachable server soon; the defaults retry for an hour.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fgvc_core.components import TRACKERS

if TYPE_CHECKING:
    from fieldmark.server.tracking.tracker import RunFacts

RUN_TAG = "fieldmark.run"
LONGEST_TAG = 4000
_BATCH = 100
"""Most parameters that MLflow accepts in one request."""
_STATES = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


@TRACKERS.register("mlflow")
class MLflow:
    """Settings as parameters, metrics by round, notes as tags.

    Args:
        where: A SQLite file, or an address (``https://...``, ``postgresql://...``); "" is a file in
            the run's folder.
        facts: Of the run.
    """

    def __init__(self, where: str, facts: "RunFacts") -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._client = MlflowClient(_address(where, facts.run_dir))
        experiment = self._experiment(facts)
        found = self._client.search_runs(
            [experiment], f"tags.`{RUN_TAG}` = '{facts.run}'", max_results=1
        )
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, "RUNNING")
            return
        tags = {RUN_TAG: facts.run}
        self._run = self._client.create_run(experiment, run_name=facts.name, tags=tags).info.run_id
        params = [Param(key, value) for key, value in facts.settings.items()]
        for start in range(0, len(params), _BATCH):
            self._client.log_batch(self._run, params=params[start : start + _BATCH])

    def figures(self, round_: int, values: dict[str, float]) -> None:
        """Log the metrics of a round."""
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, round_) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def note(self, round_: int, text: str) -> None:
        """Log a note; only the last one of a round is kept."""
        self._client.set_tag(self._run, f"out_of_the_ordinary.{round_}", text[:LONGEST_TAG])

    def finish(self, state: str, values: dict[str, float]) -> None:
        """Log the final metrics and the state."""
        self.figures(int(values.get("final/rounds", 0)), values)
        self._client.set_terminated(self._run, _STATES[state])

    def _experiment(self, facts: "RunFacts") -> str:
        known = self._client.get_experiment_by_name(facts.project)
        if known is not None:
            return str(known.experiment_id)
        try:
            # No artifacts are stored, but without this MLflow would use a folder in the working
            # directory.
            place = (facts.run_dir / "tracking" / "mlflow-artifacts").resolve().as_uri()
            return str(self._client.create_experiment(facts.project, place))
        except MlflowException:
            # Another run has just created it.
            made = self._client.get_experiment_by_name(facts.project)
            if made is None:
                raise
            return str(made.experiment_id)


def _address(where: str, run_dir: Path) -> str:
    if "://" in where:
        return where
    path = Path(where) if where else run_dir / "tracking" / "mlflow.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path.resolve()}"
