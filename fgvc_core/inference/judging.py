"""Runs a trained model on a labeled table: selects pictures, matches classes, computes logits."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.data.catalogue import load_table
from fgvc_core.data.decoding import cores
from fgvc_core.data.files import first_few
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import UNLABELLED, ExampleTable
from fgvc_core.errors import ConfigurationError, DataError, nearest
from fgvc_core.inference.trained import TrainedModel
from fgvc_core.recipe import Overrides, Recipe, parse_recipe
from fgvc_core.training.learner import Learner

Part = Literal["test", "train", "all"]

_NAMED_BY_MODEL = ("folder", "manifest")
"""Data sets whose class names come from their files."""


@dataclass(frozen=True)
class Judged:
    """N pictures and the model's logits.

    Attributes:
        logits_NK: float64.
        labels_N: int64, 0 to K - 1.
        subjects: N ids.
        columns: Further columns, each of N texts.
    """

    logits_NK: NDArray[np.float64]
    labels_N: NDArray[np.int64]
    subjects: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]

    @property
    def predicted_N(self) -> NDArray[np.int64]:
        """int64 (N,), the class with the largest logit."""
        return self.logits_NK.argmax(axis=1)


def data_of(
    trained: TrainedModel,
    overrides: Overrides = (),
    name: str | None = None,
    path: str | None = None,
    held_out: Sequence[str] = (),
) -> DataSettings:
    """The data to judge a model on: its recipe's own, with changes.

    Args:
        trained: The model.
        overrides: Changes to ``data``.
        name: Another ``data.name``.
        path: Another ``data.path``.
        held_out: Further classes that may occur.

    Raises:
        ConfigurationError: if an override is outside ``data``.
    """
    strange = [key for key in overrides if not key.startswith("data.")]
    if strange:
        raise ConfigurationError(
            f"--set {strange[0]}: only data.* can be changed here.",
            why="The model and how it sees pictures belong to the checkpoint.",
            remedy="For instance: --set data.path=PICTURES",
        )
    changed = {f"data.{key}": value for key, value in (("name", name), ("path", path)) if value}
    if isinstance(overrides, Mapping):
        overrides = {**changed, **overrides}
    else:
        overrides = [*(f"{key}={value}" for key, value in changed.items()), *overrides]
    data = parse_recipe(trained.recipe.to_toml(), overrides, "the checkpoint").data
    said = any(key.partition("=")[0] == "data.classes" for key in overrides)
    if data.name in _NAMED_BY_MODEL and not said:
        return data.model_copy(update={"classes": (*trained.class_names, *held_out)})
    if data.name != trained.recipe.data.name and not said:
        return data.model_copy(update={"classes": None})
    return data


def read_part(name: str) -> Part:
    """The part of a data set that a command line names.

    Raises:
        ConfigurationError: if there is no such part.
    """
    for part in get_args(Part):
        if part == name:
            return part
    parts = get_args(Part)
    raise ConfigurationError(
        f"--split {name} is unknown.",
        remedy=nearest(name, parts, 1) or f"One of: {', '.join(parts)}.",
    )


def read_table(data: DataSettings, part: Part, cache: Path) -> ExampleTable:
    """The labeled pictures of a part of a data set.

    Raises:
        DataError: if there are none, or the data are missing or damaged.
    """
    return labelled_part(load_table(data, cache), part)


def labelled_part(table: ExampleTable, part: Part) -> ExampleTable:
    """The labeled pictures of a part of a table.

    Raises:
        DataError: if there are none.
    """
    table = table.take(np.flatnonzero(table.labels_N >= 0))
    chosen = table if part == "all" else table.where(part)
    if not len(chosen):
        raise DataError(
            f"The data have no labeled pictures in the part '{part}'.",
            why="There is nothing to judge the model on.",
            remedy="Take --split all, or data with labels.",
        )
    return chosen


def seen_classes(recipe: Recipe, class_names: Sequence[str]) -> NDArray[np.int64]:
    """int64 (K',): the classes of which at least one site had pictures."""
    return np.array([k for k, n in enumerate(class_names) if n not in recipe.partition.unseen])


def part_known(
    table: ExampleTable,
    class_names: tuple[str, ...],
    held_out: Sequence[str],
    unseen: Sequence[str],
) -> tuple[ExampleTable, ExampleTable]:
    """(pictures of the model's classes, pictures of held-out classes), matched by name.

    Args:
        table: Labeled pictures of any data set.
        class_names: The classes that the model has learned.
        held_out: Classes that count as none of these.
        unseen: Classes that the model has a logit for but has never seen.

    Returns:
        The first table has the model's labels and class names; the second keeps its own.

    Raises:
        ConfigurationError: if a held-out class was learned, or is not in the data.
        DataError: names the labels that are neither known nor held out.
    """
    for name in held_out:
        if name in class_names:
            raise ConfigurationError(
                f"--held-out-classes: the model has learned '{name}'.",
                why="What it does with classes that it has never seen would not be measured.",
                remedy="Name classes that were kept from training.",
            )
        if name not in table.class_names:
            raise ConfigurationError(
                f"--held-out-classes: '{name}' is no class of the data.",
                remedy=nearest(name, table.class_names, 1) or "Names are those of the data.",
            )
    number = {name: k for k, name in enumerate(class_names)}
    aside = {*held_out, *unseen}
    names = [table.class_names[k] for k in table.labels_N]
    strange = sorted({name for name in names if name not in number and name not in aside})
    if strange:
        hint = " ".join(filter(None, (nearest(name, class_names, 1) for name in strange[:3])))
        raise DataError(
            f"{len(strange)} labels of the data are no classes of the model: {first_few(strange)}.",
            why=f"It knows: {first_few(class_names, 10)}.",
            remedy=f"{hint} Map them with --set 'data.label_map={{...}}' or hold them out with "
            "--held-out-classes.".strip(),
        )
    known = table.take([i for i, name in enumerate(names) if name in number])
    unknown = table.take([i for i, name in enumerate(names) if name in aside])
    mapped_N = np.array([number.get(name, UNLABELLED) for name in names], dtype=np.int64)
    if not len(known):
        raise DataError(
            "The data hold no picture of any of the model's classes.",
            remedy="Check data.path and --split.",
        )
    labels_N = mapped_N[mapped_N != UNLABELLED]
    return (
        replace(known, labels_N=labels_N, class_names=class_names, taxonomy=(), attributes_KA=None),
        unknown,
    )


def logits_of(
    learner: Learner,
    table: ExampleTable,
    cache: Path,
    batch_size: int,
    tell: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> NDArray[np.float64]:
    """Logits (N, K) of a table's pictures; decoded pictures (or features) are cached.

    Args:
        learner: The model.
        table: N pictures.
        cache: Folder of the cache.
        batch_size: Pictures per batch; each thread has one batch at a time.
        tell: Called with (pictures done, pictures in all).
        threads: Number of threads; None: one per core, and one on a GPU. The result does not depend
            on it, to the bit.

    Raises:
        DataError: if a picture is missing or damaged.
    """
    learner.model.eval()
    if not len(table):
        return np.zeros((0, learner.num_classes))
    examples = learner.examples(table, cache, tell)
    if next(learner.model.parameters()).device.type != "cpu":
        threads = 1

    @torch.inference_mode()
    def look(start: int) -> NDArray[np.float32]:
        positions = torch.arange(start, min(start + batch_size, len(table)))
        return examples.logits(learner.model, positions, None).float().cpu().numpy()

    found: list[NDArray[np.float32]] = []
    done = 0
    workers = ThreadPoolExecutor(
        threads or cores(), initializer=torch.set_num_threads, initargs=(1,)
    )
    with workers as pool:
        for logits_BK in pool.map(look, range(0, len(table), batch_size)):
            found.append(logits_BK)
            done += len(logits_BK)
            if tell is not None:
                tell(done, len(table))
    return np.concatenate(found).astype(np.float64)
