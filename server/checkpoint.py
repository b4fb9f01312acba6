"""Checkpoints: everything a run needs to go on, in one file that is whole or not there.

Tensors and state are in one safetensors file (the state as JSON in its header), so
that no crash can part them; the ``.json`` beside it repeats the state for a person.
Written aside, synced, renamed, and the folder synced.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fgvc_core import __version__
from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.recipe import Recipe

Tensors = dict[str, NDArray[np.float32]]


@dataclass
class RunState:
    """What a run knows after a round.

    Attributes:
        run: Fieldmark's own id of the run; it outlives processes.
        round: Rounds done.
        best_round: The round whose model scored best on validation; 0 is the initial model.
        best_score: Its (top-1, -loss) on the federation's validation, or None.
        since_best: Rounds scored since then, for patience.
        history: One entry a round.
        sites: Site name -> its latest figures.
        best_sites: The same as they were for the best model.
        void_rounds: Rounds in a row that found no quorum.
        privacy: Site name -> what the run has cost there, as it states it.
        ledgers: Site name -> [entries, head] of its ledger as last seen.
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
    wall_s: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run_dir: Path, recipe: Recipe, class_names: tuple[str, ...]) -> None:
        self.folder = run_dir / "checkpoints"
        self._recipe = recipe
        self._class_names = class_names

    def write(self, name: str, tensors: Tensors, state: RunState) -> Path:
        """Write ``name.safetensors`` and its sidecar atomically."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{name}.safetensors"
        metadata = {
            "fieldmark": __version__,
            "recipe": self._recipe.to_toml(),
            "recipe_digest": self._recipe.digest,
            "class_names": json.dumps(self._class_names),
            "state": json.dumps(asdict(state)),
        }
        aside = path.with_suffix(".part")
        save_file(tensors, aside, metadata)
        _sync(aside)
        os.replace(aside, path)
        sidecar = path.with_suffix(".json")
        aside = sidecar.with_suffix(".json.part")
        aside.write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        os.replace(aside, sidecar)
        _sync(self.folder)
        return path

    def exists(self, name: str) -> bool:
        """Whether there is such a checkpoint."""
        return (self.folder / f"{name}.safetensors").is_file()

    def read(self, name: str) -> tuple[Tensors, RunState]:
        """Read a checkpoint of this run.

        Raises:
            DataError: if it is missing or damaged.
            ConfigurationError: if it belongs to another recipe.
        """
        tensors, metadata = read_checkpoint(self.folder / f"{name}.safetensors")
        if metadata.get("recipe_digest") != self._recipe.digest:
            raise ConfigurationError(
                f"The checkpoint '{self.folder / name}' belongs to another recipe.",
                why="Going on would mix two experiments.",
                remedy="Resume with the recipe in the run's folder, or start under another name.",
            )
        return tensors, RunState(**json.loads(metadata["state"]))


def read_checkpoint(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of any checkpoint.

    Raises:
        DataError: if it is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"The checkpoint '{path}' cannot be read: {error}.",
            remedy="Name a .safetensors file in a run's checkpoints folder.",
        ) from None
    return tensors, metadata


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
