"""Reconstructs the validation pictures of a simulation's sites from its recipe."""

import json
from pathlib import Path

import numpy as np

from fgvc_core.data.partition import partition
from fgvc_core.data.table import ExampleTable, validation_mask
from fgvc_core.errors import DataError, PolicyRefusal
from fgvc_core.recipe import Recipe
from fgvc_core.seeds import derive_seed

PARTITION = "partition.json"
"""File in a simulated run's folder: the class counts of each site."""


def simulated_split_key(recipe: Recipe, site: str) -> bytes:
    """Key of a simulated site's validation split, from the recipe's seed: runs are repeatable."""
    return derive_seed(recipe.seed, "validation", site).to_bytes(8, "big") * 4


def validation_of_run(recipe: Recipe, table: ExampleTable, run_dir: Path) -> ExampleTable:
    """All sites' validation pictures of a simulated run.

    Args:
        recipe: The run's recipe.
        table: Its whole data set.
        run_dir: Its folder. If the partition recomputed here does not match its ``partition.json``,
            the pictures found may have been trained on, and the run is refused.

    Raises:
        PolicyRefusal: if the run was under differential privacy.
        DataError: if it was not a simulation on these data, or kept no pictures for validation.
    """
    if recipe.privacy is not None:
        raise PolicyRefusal(
            "The checkpoint was trained under differential privacy: its sites' validation "
            "pictures are private.",
            why="A temperature fitted on them would be a release that nobody has charged.",
            remedy="Calibrate on public pictures under another data.name: --calibrate --data NAME "
            "--path PATH.",
        )
    train = table.take([i for i, split in enumerate(table.splits) if split == "train"])
    kept = [
        i for i, k in enumerate(train.labels_N) if _name(train, k) not in recipe.partition.unseen
    ]
    train = train.take(kept)
    dealt = partition(train, recipe.partition, derive_seed(recipe.seed, "partition"))
    counts = {site: train.take(at).class_counts_K().tolist() for site, at in dealt.items()}
    if _held(run_dir) != counts:
        raise DataError(
            f"The sites' validation pictures of '{run_dir}' cannot be found again.",
            why="It was no simulation, or its data are others now; in a federation they never "
            "leave the sites.",
            remedy="Calibrate on pictures that nobody trained on: --calibrate --data NAME "
            "--path PATH.",
        )
    validation: list[int] = []
    for site, at in dealt.items():
        held = validation_mask(
            train.take(at), recipe.data.val_fraction, simulated_split_key(recipe, site)
        )
        # A split that would take all of a site's pictures is not used: the site trains on them.
        if not held.all():
            validation += at[held].tolist()
    if not validation:
        raise DataError(
            "No site kept a picture for validation (data.val_fraction).",
            why="There is nothing to fit a temperature on.",
            remedy="Calibrate on data of your own: --calibrate --data NAME --path PATH.",
        )
    return train.take(np.sort(np.array(validation)))


def _name(table: ExampleTable, label: int) -> str:
    return table.class_names[label] if label >= 0 else ""


def _held(run_dir: Path) -> dict[str, list[int]] | None:
    try:
        found = json.loads((run_dir / PARTITION).read_text(encoding="utf-8"))
        return dict(found["sites"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
