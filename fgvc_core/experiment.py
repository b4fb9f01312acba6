"""Builds what a recipe describes: its learner and its table of examples."""

from pathlib import Path
from typing import Any

import torch

from fgvc_core.data.catalogue import load_table
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import ConfigurationError
from fgvc_core.models.build import build_classifier
from fgvc_core.models.trainable import norm_names, travelling_names
from fgvc_core.recipe import Recipe
from fgvc_core.training.learner import Learner


def make_learner(
    recipe: Recipe,
    num_classes: int,
    device: torch.device | str = "cpu",
    weights: str | None = None,
    *,
    keeps_maps: bool = True,
) -> Learner:
    """The recipe's learner with its initial tensors; the same on every machine for one seed.

    Args:
        recipe: The recipe.
        num_classes: K.
        device: Device of the model.
        weights: Path of ``model.weights`` on this machine, if the recipe names the file by digest
            (:func:`fgvc_core.models.weights.resolve_weights`).
        keeps_maps: Whether maps in front of the first trained stage are kept of pictures; not
            where pictures are seen once.

    Raises:
        ConfigurationError: if the recipe's model cannot be built or is incomplete.
    """
    if recipe.model.norm == "local" and not recipe.federation.local:
        raise ConfigurationError(
            "model.norm = 'local', but federation.local does not name what stays.",
            why="The norms would travel and be averaged like everything else.",
            remedy="A simulation fills it in; for a federation copy federation.local from a "
            "simulated run's recipe.toml.",
        )
    model = recipe.model
    if weights is not None:
        model = model.model_copy(update={"weights": weights})
    return Learner(
        model,
        recipe.loss,
        recipe.augment,
        recipe.train,
        num_classes=num_classes,
        image_size=recipe.data.image_size,
        seed=recipe.seed,
        device=device,
        maps="float16" if keeps_maps else None,
    )


def completed(recipe: Recipe, table: ExampleTable) -> Recipe:
    """The recipe with settings filled in that depend on the table's public facts or on the model.

    These are the class structure that a head needs (``model.class_groups``,
    ``model.class_attributes``, ``model.unseen_classes``), and the tensors that ``model.norm =
    "local"`` keeps at the sites (``federation.local``). Settings that the recipe has already stay
    as they are.
    """
    return _with_local_norms(_with_class_knowledge(recipe, table), table.num_classes)


def _with_local_norms(recipe: Recipe, num_classes: int) -> Recipe:
    if recipe.model.norm != "local" or recipe.federation.local:
        return recipe
    model = build_classifier(recipe.model, num_classes, recipe.data.image_size, recipe.seed)
    trained = travelling_names(model)
    kept = [name for name in norm_names(model) if name in trained]
    values = recipe.model_dump(mode="json", exclude_none=True)
    values["federation"]["local"] = kept
    return Recipe.read(values)


def _with_class_knowledge(recipe: Recipe, table: ExampleTable) -> Recipe:
    model = recipe.model
    found: dict[str, Any] = {}
    if model.head == "multilevel" and not model.class_groups and table.taxonomy:
        levels = range(len(table.taxonomy[0]) - 1)
        found["class_groups"] = [_numbered([c[level] for c in table.taxonomy]) for level in levels]
    if model.head == "semantic":
        if not model.class_attributes and table.attributes_KA is not None:
            found["class_attributes"] = table.attributes_KA.astype(float).round(6).tolist()
        if not model.unseen_classes:
            unseen = recipe.partition.unseen
            found["unseen_classes"] = [
                k for k, name in enumerate(table.class_names) if name in unseen
            ]
    if not any(found.values()):
        return recipe
    values = recipe.model_dump(mode="json", exclude_none=True)
    values["model"].update(found)
    return Recipe.read(values)


def _numbered(names: list[str]) -> list[int]:
    number = {name: group for group, name in enumerate(dict.fromkeys(names))}
    return [number[name] for name in names]


def make_table(recipe: Recipe, cache: Path) -> ExampleTable:
    """The recipe's examples on this machine."""
    return load_table(recipe.data, cache)


def pick_device(name: str) -> torch.device:
    """``auto`` (a GPU if there is one), ``cpu``, or ``cuda``/``cuda:1``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
