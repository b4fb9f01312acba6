"""Benchmark ``wire``: bytes and top-1 for each encoding of updates, on photographs of birds.

The data are classes 1 to 50 of CUB-200-2011 on five sites with unequal classes; the backbone is
pre-trained. The reference is full fine-tuning of the same backbone in float32, over the same number
of rounds. Bytes are those of a whole run, to and from all sites.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvc_core.recipe import Recipe, load_recipe
from fieldmark.simulations.bench import figure
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.simulate import simulate

RECIPE = Path(__file__).parents[1] / "recipes" / "cub50.toml"
BASE = ("federation.rounds=8", "evaluate.every=0")
HEAD = ("train.epochs=3",)
FULL = (
    "model.train=all",
    "train.optimizer=adam",
    "train.lr=0.001",
    "train.batch_size=16",
    "evaluate.batch_size=32",
)

DELTA = ("wire.delta=true",)
INT8 = ("wire.precision=int8", *DELTA)
ENCODINGS: dict[str, tuple[str, ...]] = {
    "head_float32": (),
    "head_float16": ("wire.precision=float16",),
    "head_bfloat16": ("wire.precision=bfloat16", *DELTA),
    "head_int8_whole": ("wire.precision=int8",),
    "head_int8": INT8,
    "head_int8_down_bfloat16": (*INT8, "wire.down=bfloat16"),
    "head_top10_int8_down_bfloat16": (*INT8, "wire.top_k=0.1", "wire.down=bfloat16"),
}
BEST = "head_int8_down_bfloat16"
"""The encoding that is compared with full fine-tuning."""


@dataclass(frozen=True)
class Outcome:
    """Top-1 on the test split, and MB (1e6 bytes) up and down over a run."""

    top1: float
    up_mb: float
    down_mb: float

    @property
    def mb(self) -> float:
        """Total of both directions."""
        return self.up_mb + self.down_mb


def bench_wire() -> dict[str, Any]:
    """The figures of ``fieldmark bench wire``; a single "skipped" one if the data are missing."""
    data = data_folder()
    if not data.is_dir():
        how = f"skipped: no photographs at {data.name} (set FIELDMARK_DATA to the folder above it)"
        return {"skipped": figure(0.0, None, "", how)}
    outcomes = {name: _run(data, (*HEAD, *wire)) for name, wire in ENCODINGS.items()}
    full = _run(data, FULL)
    return {**_against_full(outcomes[BEST], full), **_encodings(outcomes), **_full(full)}


def data_folder() -> Path:
    """Folder of the photographs: under ``FIELDMARK_DATA``, or beside the repository."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    return Path(os.environ.get("FIELDMARK_DATA", beside)) / "cub50"


def _against_full(best: Outcome, full: Outcome) -> dict[str, Any]:
    what = f"{BEST} ({' '.join(ENCODINGS[BEST])})"
    return {
        "bytes_vs_full": figure(
            best.mb, full.mb, "MB", f"a run of {what}, both ways, against full float32 fine-tuning"
        ),
        "top1_loss": figure(
            full.top1 - best.top1,
            None,
            "top1",
            f"top1 of full float32 fine-tuning ({full.top1:.4f}) less that of {BEST} "
            f"({best.top1:.4f}), over as many rounds",
        ),
    }


def _encodings(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    plain = outcomes["head_float32"]
    int8 = outcomes["head_int8"]
    figures = {
        "int8_head_top1_loss": figure(
            plain.top1 - int8.top1,
            None,
            "top1",
            f"top1 of the head in float32 ({plain.top1:.4f}) less that of head_int8 "
            f"({int8.top1:.4f})",
        )
    }
    for name, outcome in outcomes.items():
        how = f"{' '.join(ENCODINGS[name]) or 'as it is'}, against head_float32"
        figures[f"{name}_up"] = figure(outcome.up_mb, plain.up_mb, "MB", how)
        figures[f"{name}_down"] = figure(outcome.down_mb, plain.down_mb, "MB", how)
        figures[f"{name}_top1"] = figure(outcome.top1, plain.top1, "top1", how)
    return figures


def _full(full: Outcome) -> dict[str, Any]:
    how = f"full float32 fine-tuning ({' '.join(FULL)})"
    return {
        "full_up": figure(full.up_mb, None, "MB", how),
        "full_down": figure(full.down_mb, None, "MB", how),
        "full_top1": figure(full.top1, None, "top1", how),
    }


def _run(data: Path, overrides: tuple[str, ...]) -> Outcome:
    recipe: Recipe = load_recipe(RECIPE, (*BASE, *overrides, f"data.path={data}"))
    with tempfile.TemporaryDirectory() as folder:
        metrics = simulate(Simulation(recipe, Path(folder) / "run"))
    return Outcome(metrics["top1"], metrics["bytes_up"] / 1e6, metrics["bytes_down"] / 1e6)
