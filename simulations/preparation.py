"""Preparation of a simulated run: the partition, and all pictures decoded or embedded once.

Errors in the data or the model are found here, before the run's folder is created.
"""

import json
from collections.abc import Callable
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.check import only_class, refuse_contradictions
from fgvc_core.data.files import FileSource
from fgvc_core.data.frames import count_further_frames
from fgvc_core.data.partition import deal_pool, partition
from fgvc_core.data.table import ExampleTable, validation_mask
from fgvc_core.errors import ConfigurationError, DataError, nearest
from fgvc_core.experiment import make_learner, make_table
from fgvc_core.files import write_privately
from fgvc_core.inference.validation_split import simulated_split_key
from fgvc_core.recipe import Recipe, parse_recipe
from fgvc_core.seeds import derive_seed
from fgvc_core.training.learner import Learner
from fgvc_core.training.self_supervised import self_supervised_loss
from fgvc_core.words import counted

CHUNK = 64
"""Pictures per task, few enough that all workers finish at about the same time."""

Tell = Callable[[int, int], None]
"""Called with (pictures done, pictures in all)."""


@dataclass(frozen=True)
class Setting:
    """The partition of one simulated run.

    Attributes:
        table: All examples.
        rows: Site name -> int64 rows of ``table``.
        pool: Site name -> int64 rows of its unlabeled pictures.
        cache: Folder for decoded pictures and features.
    """

    table: ExampleTable
    rows: dict[str, NDArray[np.int64]]
    cache: Path
    pool: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def site_table(self, site: str) -> ExampleTable:
        """One site's examples."""
        return self.table.take(self.rows[site])

    def counts(self) -> dict[str, list[int]]:
        """Site name -> examples of each class."""
        return {s: self.site_table(s).class_counts_K().tolist() for s in self.rows}


def split_site(recipe: Recipe, setting: Setting, site: str) -> tuple[ExampleTable, ExampleTable]:
    """A simulated site's (training, validation) tables, split as the site itself does."""
    table = setting.site_table(site)
    held = validation_mask(table, recipe.data.val_fraction, simulated_split_key(recipe, site))
    if held.all():
        held[:] = False
    return table.take((~held).nonzero()[0]), table.take(held.nonzero()[0])


def without_labels(recipe: Recipe, setting: Setting, sites: list[str]) -> ExampleTable:
    """Unlabeled pictures of sites: their pools and their training pictures."""
    own = [setting.rows[site] for site in sites]
    own += [setting.pool[site] for site in sites if site in setting.pool]
    held = {name for site in sites for name in split_site(recipe, setting, site)[1].ids}
    rows = np.unique(np.concatenate(own)).tolist()
    return setting.table.take([row for row in rows if setting.table.ids[row] not in held])


def deal(recipe: Recipe, cache: Path) -> Setting:
    """Load the data set and distribute its training split over the sites.

    Raises:
        DataError: if the data are missing or invalid, or cannot be partitioned as asked.
        ConfigurationError: if the recipe's settings contradict each other or the data.
    """
    table = make_table(recipe, cache)
    if isinstance(table.source, FileSource):
        refuse_contradictions(table)
    if len(table.class_names) == 1:
        raise DataError(
            only_class(table.class_names[0]),
            why="A model would name it whatever it is shown, and seem to be right always.",
            remedy="Check data.path; 'fieldmark data check' says how the data were understood.",
        )
    train_rows = np.flatnonzero(_dealt(table, recipe.partition.unseen))
    train = table.take(train_rows)
    missing = [n for n, c in zip(table.class_names, train.class_counts_K(), strict=True) if not c]
    missing = [name for name in missing if name not in recipe.partition.unseen]
    if missing:
        raise DataError(
            f"No site can hold a picture of {counted(len(missing), 'class', 'classes')}: "
            f"{', '.join(missing[:5])}.",
            why="A class without a training picture cannot be learned.",
            remedy="Take the class out of data.classes, or add pictures of it.",
        )
    if not len(table.where("test")):
        raise DataError(
            "The data set has no test split.",
            why="Without one nothing can be said about the model.",
            remedy="Mark some pictures as test, or set data.test_fraction.",
        )
    dealt = partition(train, recipe.partition, derive_seed(recipe.seed, "partition"))
    rows = {site: train_rows[at] for site, at in dealt.items()}
    pool = deal_pool(table, rows, recipe.partition, derive_seed(recipe.seed, "pool"))
    return Setting(table, rows, cache, pool)


def _dealt(table: ExampleTable, unseen: tuple[str, ...]) -> NDArray[np.bool_]:
    """Mask of the examples that sites get: the training split without the unseen classes."""
    strange = [name for name in unseen if name not in table.class_names]
    if strange:
        raise ConfigurationError(
            f"partition.unseen names '{strange[0]}', which is no class.",
            remedy=nearest(strange[0], table.class_names, 1) or "Use names from data.classes.",
        )
    numbers = [table.class_names.index(name) for name in unseen]
    training_N = np.array([split == "train" for split in table.splits])
    found: NDArray[np.bool_] = training_N & ~np.isin(table.labels_N, numbers)
    return found


def prepare(recipe: Recipe, setting: Setting, executor: Executor, tell: Tell) -> None:
    """Decode or embed all pictures of the run, on all workers.

    Raises:
        DataError: if a picture is missing or damaged.
    """
    probe = make_learner(recipe, setting.table.num_classes)
    if recipe.pretrain.method != "none":
        self_supervised_loss(recipe.pretrain.method, recipe.pretrain.temperature)
    scored: list[ExampleTable] = [setting.table.where("test")]
    trained: list[ExampleTable] = []
    if probe.frozen_backbone or probe.prefix is not None:
        scored = _chunks(scored)
        trained = _chunks([setting.site_table(site) for site in setting.rows])
    else:
        for site in setting.rows:
            trained += [t for t in split_site(recipe, setting, site) if len(t)]
    if recipe.pretrain.method != "none":
        pictures = [without_labels(recipe, setting, [site]) for site in setting.rows]
    else:
        pictures = []
    total, done = sum(len(t) for t in (*scored, *trained, *pictures)), 0
    tell(0, total)
    tasks = [(table, "score") for table in scored]
    tasks += [(table, "train") for table in trained] + [(table, "pictures") for table in pictures]
    futures = {
        executor.submit(prepare_table, recipe, table, setting.cache, use): len(table)
        for table, use in tasks
    }
    try:
        for future in as_completed(futures):
            future.result()
            done += futures[future]
            tell(done, total)
    finally:
        for future in futures:
            future.cancel()


def _chunks(tables: list[ExampleTable]) -> list[ExampleTable]:
    return [
        table.take(np.arange(start, min(start + CHUNK, len(table))))
        for table in tables
        for start in range(0, len(table), CHUNK)
    ]


def prepare_table(recipe: Recipe, table: ExampleTable, cache: Path, use: str = "train") -> None:
    """Decode or embed one table, in a worker.

    Args:
        recipe: The recipe.
        table: The pictures.
        cache: Folder of the cache.
        use: ``train``, ``score``, or ``pictures`` for pretraining, which sees whole pictures.
    """
    learner = _learner(recipe.to_toml(), table.num_classes)
    if use == "pictures":
        learner.pictures(table, cache)
    else:
        learner.prepare(table, cache, scored=use == "score")


@lru_cache(maxsize=1)
def _learner(recipe: str, num_classes: int) -> Learner:
    return make_learner(parse_recipe(recipe), num_classes)


def write_data(setting: Setting, path: Path, *, private: bool = False) -> None:
    """Write how the data were understood and what of them is not used (mode 0600).

    The file names pictures. As with the partition, a mark says whether sites would reveal it.
    """
    table = setting.table
    count_further_frames(table)
    values = {"private": private, "how": table.how, "unused": table.unused.as_json()}
    write_privately(path, json.dumps(values))


def write_partition(setting: Setting, path: Path, *, private: bool = False) -> None:
    """Write the class counts of all sites, for the researcher only (mode 0600).

    Under differential privacy a site would never reveal them: the file has a mark that says so, and
    the report leaves them out.
    """
    values: dict[str, Any] = {
        "private": private,
        "class_names": list(setting.table.class_names),
        "sites": setting.counts(),
    }
    write_privately(path, json.dumps(values))
