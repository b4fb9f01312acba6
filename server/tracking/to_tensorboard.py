"""The TensorBoard tracker: event files in a folder for ``tensorboard --logdir``."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch.utils.tensorboard import SummaryWriter

from fgvc_core.components import TRACKERS

if TYPE_CHECKING:
    from fieldmark.server.tracking.tracker import RunFacts


@TRACKERS.register("tensorboard")
class TensorBoard:
    """Scalars by round, settings and notes as text.

    Args:
        where: A folder for many runs, one subfolder each; "" is the run's own folder.
        facts: Of the run.
    """

    def __init__(self, where: str, facts: "RunFacts") -> None:
        inside = facts.run_dir / "tracking" / "tensorboard"
        folder = Path(where) / f"{facts.name}-{facts.run[:8]}" if where else inside
        # Rounds after the checkpoint are repeated, so their entries are purged.
        self._writer = SummaryWriter(str(folder), purge_step=facts.done + 1)
        if not facts.done:
            rows = "\n".join(f"| {key} | {value} |" for key, value in facts.settings.items())
            self._writer.add_text("recipe", f"| setting | value |\n|---|---|\n{rows}", 0)
        self._writer.flush()

    def figures(self, round_: int, values: dict[str, float]) -> None:
        """Log the metrics of a round, as ``round/NAME``."""
        for name, value in values.items():
            self._writer.add_scalar(f"round/{name}", value, round_)
        self._writer.flush()

    def note(self, round_: int, text: str) -> None:
        """Log a note."""
        self._writer.add_text("out of the ordinary", text, round_)

    def finish(self, state: str, values: dict[str, float]) -> None:
        """Log the final metrics and the state."""
        self._writer.add_text("state", state, 0)
        for name, value in values.items():
            self._writer.add_scalar(name, value, int(values.get("final/rounds", 0)))
        self._writer.close()
