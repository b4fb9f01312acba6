"""From a recipe to the things it describes: its learner and its table of examples."""

from pathlib import Path

import torch

from fgvc_core.data.catalogue import load_table
from fgvc_core.data.table import ExampleTable
from fgvc_core.recipe import Recipe
from fgvc_core.training.learner import Learner


def make_learner(recipe: Recipe, num_classes: int, device: torch.device | str = "cpu") -> Learner:
    """The recipe's learner with its initial tensors; equal on every machine for one seed."""
    return Learner(
        recipe.model,
        recipe.loss,
        recipe.augment,
        recipe.train,
        num_classes=num_classes,
        image_size=recipe.data.image_size,
        seed=recipe.seed,
        device=device,
    )


def make_table(recipe: Recipe, cache: Path) -> ExampleTable:
    """The recipe's examples on this machine."""
    return load_table(recipe.data, cache)


def pick_device(name: str) -> torch.device:
    """``auto`` (a GPU if there is one), ``cpu``, or ``cuda``/``cuda:1``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
