"""Checkpoints: the model and the complete state of a run in one file, written atomically.

Tensors and state share one safetensors file (the state as JSON in its header), so a crash cannot
leave them out of step. The ``.json`` beside it repeats the state for people. Server tensors
(optimizer moments, control variates, the model's last movement) have names that begin with
``server/``, a prefix that no model tensor has.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from fgvc_core import __version__
from fgvc_core.errors import ConfigurationError, FieldmarkError, RunFailed
from fgvc_core.files import replace_json, replacing
from fgvc_core.inference.checkpoint_file import SERVER, read_all, read_checkpoint
from fgvc_core.inference.taxonomy import Taxonomy
from fgvc_core.recipe import Recipe, differences, parse_recipe

Tensors = dict[str, NDArray[np.float32]]

FORMAT = "2"
"""Version of the checkpoint format."""


@dataclass
class RunState:
    """State of a run after a round.

    Attributes:
        run: Fieldmark's id of the run; the same when the run is resumed.
        round: Rounds done.
        best_round: The round whose model scored best on validation; 0 is the initial model.
        best_score: Its (top-1, -loss) on the federation's validation, or None.
        since_best: Rounds scored since then, for patience.
        history: One entry per round.
        sites: Site name -> its latest metrics.
        best_sites: The same for the best model.
        void_rounds: Consecutive rounds without a quorum.
        privacy: Site name -> the privacy cost of the run, as the site states it.
        ledgers: Site name -> [entries, head] of its ledger as last seen.
        standing: Site name -> how its replies were judged; see
            :mod:`fieldmark.server.screening.trust`.
        last_drawn: Site name -> the last round that it was drawn for.
        screening: Statistics of earlier rounds' updates; see
            :mod:`fieldmark.server.screening.comparison`.
        pretraining: One entry per round of pre-training.
        pretrain_screening: Statistics of the updates of those rounds.
        claims: Site name -> the first number of examples that counted in this run.
        centre: Mean of what the first message before class sums released, then the deviation of
            its noise; empty until it is known. Sites release class sums once, so it never changes,
            even if a site is refused later.
        start: How the head before round 1 was found; empty until it was.
        class_shares: Shares of the classes over all sites, for ``loss.balance_prior`` and
            ``loss.balance_shares``; empty without them.
        personal: Site name -> scores of the best model there, and of the site's personal model.
        closed: Whether the last model has been scored.
        events: Length of ``events.jsonl`` in bytes when this was written.
    """

    run: str
    round: int = 0
    best_round: int = 0
    best_score: list[float] | None = None
    since_best: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sites: dict[str, dict[str, Any]] = field(default_factory=dict)
    best_sites: dict[str, dict[str, Any]] = field(default_factory=dict)
    void_rounds: int = 0
    privacy: dict[str, dict[str, Any]] = field(default_factory=dict)
    ledgers: dict[str, list[Any]] = field(default_factory=dict)
    standing: dict[str, dict[str, Any]] = field(default_factory=dict)
    last_drawn: dict[str, int] = field(default_factory=dict)
    screening: dict[str, Any] = field(default_factory=dict)
    pretraining: list[dict[str, Any]] = field(default_factory=list)
    pretrain_screening: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, int] = field(default_factory=dict)
    centre: list[float] = field(default_factory=list)
    start: dict[str, Any] = field(default_factory=dict)
    class_shares: list[float] = field(default_factory=list)
    personal: dict[str, dict[str, Any]] = field(default_factory=dict)
    closed: bool = False
    events: int = 0
    wall_s: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run_dir: The run's folder.
        recipe: The run's.
        class_names: K names in label order.
        taxonomy: Public class information to store with the model; None: nothing.
    """

    def __init__(
        self,
        run_dir: Path,
        recipe: Recipe,
        class_names: tuple[str, ...],
        taxonomy: Taxonomy | None = None,
    ) -> None:
        self.folder = run_dir / "checkpoints"
        self._recipe = recipe
        self._class_names = class_names
        self._public = {} if taxonomy is None else taxonomy.as_metadata()

    def write(
        self, name: str, tensors: Tensors, state: RunState, server: Tensors | None = None
    ) -> Path:
        """Write ``name.safetensors`` and its sidecar atomically.

        Args:
            name: ``last``, ``best`` or ``round-...``.
            tensors: The model's.
            state: The run's.
            server: Tensors of the server's own state.

        Raises:
            RunFailed: if it cannot be written, for instance on a full disk.
        """
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{name}.safetensors"
        # Its values are plain; asdict() would copy the whole history, a round's every round.
        values = vars(state)
        metadata = {
            "fieldmark": __version__,
            "format": FORMAT,
            "recipe": self._recipe.to_toml(),
            "recipe_digest": self._recipe.digest,
            "class_names": json.dumps(self._class_names),
            "state": json.dumps(values),
            **self._public,
        }
        remembered = {SERVER + key: np.ascontiguousarray(a) for key, a in (server or {}).items()}
        try:
            with replacing(path, durable=True) as aside:
                save_file({**tensors, **remembered}, aside, metadata)
            replace_json(path.with_suffix(".json"), values)
        except (SafetensorError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise RunFailed(
                f"The checkpoint '{path}' cannot be written: {reason}.",
                why="Without it the round is lost; the checkpoint before it is whole.",
                remedy="Free space on that disk, or mend it, and go on with --resume.",
            ) from None
        return path

    def exists(self, name: str) -> bool:
        """Whether the checkpoint exists."""
        return (self.folder / f"{name}.safetensors").is_file()

    def read(self, name: str) -> tuple[Tensors, RunState]:
        """Read a checkpoint of this run: the model's tensors and the state.

        Raises:
            DataError: if it is missing or damaged.
            ConfigurationError: if another version wrote it, or it belongs to another recipe.
        """
        path = self.folder / f"{name}.safetensors"
        tensors, metadata = read_checkpoint(path)
        written = (metadata.get("fieldmark"), metadata.get("format"))
        if written != (__version__, FORMAT):
            raise ConfigurationError(
                f"The checkpoint '{path}' was written by Fieldmark {written[0]} (format "
                f"{written[1]}); this is Fieldmark {__version__} (format {FORMAT}).",
                why="Another version may go on differently from the same state.",
                remedy="Resume with the version that wrote it, or start a new run.",
            )
        if metadata.get("recipe_digest") != self._recipe.digest:
            differing = self._differences(metadata.get("recipe", ""))
            raise ConfigurationError(
                f"The checkpoint '{path}' belongs to another recipe: {differing}.",
                why="Going on would mix two experiments.",
                remedy="Resume with the recipe in the run's folder, or start under another name.",
            )
        return tensors, RunState(**json.loads(metadata["state"]))

    def remembered(self, name: str) -> Tensors:
        """Tensors of the server's own state, without the prefix.

        Raises:
            DataError: if the checkpoint is missing or damaged.
        """
        tensors, _ = read_all(self.folder / f"{name}.safetensors")
        return {n.removeprefix(SERVER): a for n, a in tensors.items() if n.startswith(SERVER)}

    def _differences(self, text: str) -> str:
        try:
            return "; ".join(differences(parse_recipe(text), self._recipe)[:5])
        except FieldmarkError as error:
            return f"its own cannot be read ({error.what})"
