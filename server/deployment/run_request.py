"""The requested and actual state of a run: ``coordinator/conduct.json`` in its folder."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fgvc_core.errors import ConfigurationError
from fgvc_core.files import read_json, replace_private_json
from fgvc_core.supervision import holder
from fieldmark.server.deployment.settings import read_settings

State = Literal["wanted", "running", "stopping", "stopped", "finished", "failed", "none"]
ACTIVE: tuple[State, ...] = ("wanted", "running", "stopping")


@dataclass(frozen=True)
class RunRequest:
    """The state of a run.

    Attributes:
        state: ``wanted`` until the SuperLink has it, then ``running`` until it has ended.
        flower_run: The Flower run that executes it; a new one after each crash.
        tries: Flower runs so far.
        stuck: Tries since a round was last completed.
        round: Rounds done when the last try began.
        why: How it ended, in words.
    """

    state: State = "none"
    flower_run: int = 0
    tries: int = 0
    stuck: int = 0
    round: int = 0
    why: str = ""

    def but(self, **changes: Any) -> "RunRequest":
        """A copy with some fields changed."""
        return replace(self, **changes)


def read_run_request(run_dir: Path) -> RunRequest:
    """Read a run's state; ``none`` if there is none."""
    values = read_json(run_dir / "coordinator" / "conduct.json")
    return RunRequest(**values) if values else RunRequest()


def write_run_request(run_dir: Path, request: RunRequest) -> None:
    """Write a run's state."""
    replace_private_json(run_dir / "coordinator" / "conduct.json", asdict(request))


def active_run(folder: Path) -> Path | None:
    """The folder of the active run, if any."""
    for path in sorted((folder / "runs").glob("*/coordinator/conduct.json")):
        run_dir = path.parents[1]
        if read_run_request(run_dir).state in ACTIVE:
            return run_dir
    return None


def rounds_done(run_dir: Path) -> int:
    """Rounds in a run's last checkpoint."""
    values = read_json(run_dir / "checkpoints" / "last.json") or {}
    return int(values.get("round", 0))


def check_idle(folder: Path) -> None:
    """Check that a coordinator is up and has no run on; quick, because nothing large is imported.

    Args:
        folder: The coordinator's, as an absolute path.

    Raises:
        ConfigurationError: saying what to do instead.
    """
    read_settings(folder)
    if holder(folder) is None:
        raise ConfigurationError(
            f"The coordinator of '{folder}' is not up.",
            remedy=f"Start it: fieldmark server up {folder}",
        )
    on = active_run(folder)
    if on is not None:
        raise ConfigurationError(
            f"The run '{on.name}' is on.",
            why="Sites answer one run at a time.",
            remedy=f"Look at it: fieldmark server attach {folder}; or end it: "
            f"fieldmark server cancel {folder}",
        )
