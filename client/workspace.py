"""State of a worker process between messages: the learner of a recipe, and the examples of sites.

Both are expensive to create. No data pass from one site to another: each request overwrites the
tensors that a learner trains, and all others are frozen.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.data.labels import LeftOut
from fgvc_core.data.table import ExampleTable, held_names, validation_mask
from fgvc_core.errors import DataError
from fgvc_core.experiment import make_learner, pick_device
from fgvc_core.privacy.sampling import protected_units, unit_names
from fgvc_core.privacy.settings import Unit
from fgvc_core.protocol.tensor_names import local
from fgvc_core.recipe import Recipe
from fgvc_core.training.examples import Examples
from fgvc_core.training.learner import Learner
from fgvc_core.wire.arrays import TensorSpec, spec_of
from fieldmark.client.job import Job
from fieldmark.client.left_out import keep_left_out
from fieldmark.client.reading import data_settings, load_site_table
from fieldmark.client.site import Site
from fieldmark.client.weights import site_weights

SITES_KEPT = 256
"""Number of sites whose examples a worker process caches. Pictures are memory-mapped from the
cache, so a site costs little more than its labels."""


@dataclass(frozen=True)
class SiteExamples:
    """A site's training and validation examples, and with differential privacy the unit of each.

    ``train_subjects`` has the subject of each training example.
    """

    train: Examples
    validation: Examples
    train_units: NDArray[np.int64] | None = None
    validation_units: NDArray[np.int64] | None = None
    left_out: LeftOut = field(default_factory=LeftOut)
    train_subjects: tuple[str, ...] = ()


class Workspace:
    """Learner, tables and examples that one worker process caches."""

    def __init__(self) -> None:
        self._learners: dict[tuple[Any, ...], tuple[Learner, dict[str, TensorSpec]]] = {}
        self._examples: OrderedDict[tuple[Any, ...], SiteExamples] = OrderedDict()
        self._tables: dict[tuple[Any, ...], tuple[ExampleTable, LeftOut]] = {}
        self.fresh: dict[str, NDArray[np.float32]] = {}
        """Initial local tensors, the same for every site before its first round."""
        self.lock = threading.Lock()

    def forget_data(self) -> None:
        """Drop all cached tables and examples."""
        self._examples.clear()
        self._tables.clear()

    def learner(
        self, site: Site, recipe: Recipe, num_classes: int, device: torch.device
    ) -> tuple[Learner, dict[str, TensorSpec]]:
        """Learner of a recipe, and the specs of the tensors that it trains."""
        key = (recipe.digest, num_classes, str(device))
        if key not in self._learners:
            self._learners.clear()
            learner = make_learner(recipe, num_classes, device, site_weights(site, recipe))
            tensors = learner.tensors()
            specs = {name: spec_of(array) for name, array in tensors.items()}
            self.fresh = local(tensors, recipe.federation.local)
            self._learners[key] = learner, specs
        return self._learners[key]

    def examples(
        self,
        site: Site,
        recipe: Recipe,
        learner: Learner,
        class_names: tuple[str, ...],
        unit: Unit | None,
    ) -> SiteExamples:
        """Examples of a site, cached."""
        own = site.settings.data.model_dump_json()
        key = (str(site.home), own, recipe.digest, class_names, unit)
        if key in self._examples:
            self._examples.move_to_end(key)
        else:
            tolerant = leaves_out(site, unit)
            table, left_out = self.table(site, recipe, class_names, tolerant)
            _check_classes(table, class_names)
            found = split_examples(
                site, recipe, learner, table, unit, left_out if tolerant else None
            )
            log_left_out(site, found.left_out)
            keep_left_out(site, recipe.name, found.left_out, table.unused)
            self._examples[key] = found
            while len(self._examples) > SITES_KEPT:
                self._examples.popitem(last=False)
        return self._examples[key]

    def table(
        self, site: Site, recipe: Recipe, class_names: tuple[str, ...], tolerant: bool = False
    ) -> tuple[ExampleTable, LeftOut]:
        """Table that a site's rows are taken from, and the rows that it leaves out.

        Simulated sites share one table.
        """
        settings = data_settings(site, recipe, class_names).model_dump_json()
        own = site.settings.data
        key = (settings, own.split, str(site.cache), tolerant)
        if key not in self._tables:
            self._tables.clear()
            left_out = LeftOut()
            table = load_site_table(site, recipe, class_names, left_out if tolerant else None)
            self._tables[key] = table, left_out
        return self._tables[key]


WORKSPACE = Workspace()
"""Workspace of this process."""


def leaves_out(site: Site, unit: Unit | None) -> bool:
    """Whether faulty pictures are left out instead of raising an error.

    Always so under differential privacy: an answer must not depend on a single picture. Data of
    simulated sites were validated before the run.
    """
    return site.rows is None and (unit is not None or site.settings.data.faults == "leave-out")


def log_left_out(site: Site, left_out: LeftOut) -> None:
    """Log in the site's own log which rows were left out, and why."""
    if left_out.total:
        logging.getLogger(f"fieldmark.site.{site.home}").warning(
            "%d rows of the data count as nothing: %s",
            left_out.total,
            "; ".join(left_out.sentences()),
        )


@contextmanager
def learner_of(job: Job) -> Iterator[tuple[Learner, dict[str, TensorSpec]]]:
    """Learner of this process, used by one job at a time; no picture is read."""
    resources = job.site.settings.resources
    device = pick_device(resources.device)
    torch.set_num_threads(resources.threads)
    with WORKSPACE.lock:
        yield WORKSPACE.learner(job.site, job.recipe, len(job.class_names), device)


@contextmanager
def learner_and_examples(
    job: Job,
) -> Iterator[tuple[Learner, dict[str, TensorSpec], SiteExamples]]:
    """Learner of this process and a site's examples, used by one job at a time."""
    unit = None if job.privacy is None else job.privacy.unit
    with learner_of(job) as (learner, specs):
        found = WORKSPACE.examples(job.site, job.recipe, learner, job.class_names, unit)
        yield learner, specs, found


def fresh_local() -> dict[str, NDArray[np.float32]]:
    """Initial local tensors of this process's learner, the same for every site before round 1."""
    return WORKSPACE.fresh


def split_examples(
    site: Site,
    recipe: Recipe,
    learner: Learner,
    table: ExampleTable,
    unit: Unit | None = None,
    left_out: LeftOut | None = None,
) -> SiteExamples:
    """Split a site's rows into training and validation by the keyed hash of their subjects.

    Args:
        site: The site.
        recipe: Sets the fraction held out for validation.
        learner: Decides how pictures are decoded.
        table: All rows.
        unit: Protected unit; None without differential privacy.
        left_out: Rows that the table left out; unreadable pictures are then left out and added.
            None: such a picture raises.
    """
    table = own_rows(site, table)
    examples = None
    of_table, left_out = left_out, LeftOut()
    if of_table is not None:
        left_out.extend(of_table.names)
        table, examples = learner.readable_examples(table, site.cache, left_out)
    if unit is None:
        held = held_rows(site, recipe, table)
        sides = [np.flatnonzero(~held), np.flatnonzero(held)]
        units = None
    else:
        sides, units = _unit_sides(site, recipe, table, unit)
    train, validation = (
        learner.examples(table.take(side), site.cache) if examples is None else examples.take(side)
        for side in sides
    )
    of_train, of_validation = units or (None, None)
    subjects = table.take(sides[0]).subjects
    return SiteExamples(train, validation, of_train, of_validation, left_out, subjects)


def _unit_sides(
    site: Site, recipe: Recipe, table: ExampleTable, unit: Unit
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Row positions of training and validation, and the unit of each row.

    Units are formed over all pictures, and each is on one side as a whole.
    """
    contents = [table.content_key(i) for i in range(len(table))]
    units_N = protected_units(unit, contents, table.subjects)
    names = unit_names(units_N, table.subjects)
    held = held_names(names, recipe.data.val_fraction, site.split_key)
    sides = [np.flatnonzero(~held), np.flatnonzero(held)]
    return sides, [
        np.unique(units_N[side], return_inverse=True)[1].astype(np.int64) for side in sides
    ]


def split_table(
    site: Site, recipe: Recipe, table: ExampleTable
) -> tuple[ExampleTable, ExampleTable]:
    """Split a site's rows without differential privacy: (training, validation)."""
    table = own_rows(site, table)
    held = held_rows(site, recipe, table)
    return table.take(np.flatnonzero(~held)), table.take(np.flatnonzero(held))


def held_rows(site: Site, recipe: Recipe, table: ExampleTable) -> NDArray[np.bool_]:
    """bool (N,): rows of a site held out for validation, without differential privacy."""
    held = validation_mask(table, recipe.data.val_fraction, site.split_key)
    if held.all():
        # With very few subjects the hash may hold out all of them: train on them instead. Not
        # under differential privacy, where adding one subject would then move all the others.
        held[:] = False
    return held


def own_rows(site: Site, table: ExampleTable) -> ExampleTable:
    """Rows that a site trains and validates on."""
    return table.take(site.rows) if site.rows is not None else table.where("train")


def pictures_without_labels(job: Job, learner: Learner) -> ExampleTable:
    """Rows for pre-training: the site's part of the pool and its training pictures."""
    site, recipe = job.site, job.recipe
    tolerant = leaves_out(site, None)
    table, of_table = WORKSPACE.table(site, recipe, job.class_names, tolerant)
    if tolerant:
        left_out = LeftOut()
        left_out.extend(of_table.names)
        table, _ = learner.readable_examples(table, site.cache, left_out)
        log_left_out(site, left_out)
    _, held = split_table(site, recipe, table)
    if site.rows is None:
        own = [i for i, split in enumerate(table.splits) if split in ("train", "pool")]
    else:
        own = np.union1d(site.rows, site.pool_rows).tolist()
    validation = set(held.ids)
    return table.take([i for i in own if table.ids[i] not in validation])


def site_table(site: Site, recipe: Recipe) -> ExampleTable:
    """Table that a site's rows are taken from, cached by this process."""
    return WORKSPACE.table(site, recipe, recipe.data.classes or ())[0]


def _check_classes(table: ExampleTable, class_names: tuple[str, ...]) -> None:
    if table.class_names == class_names:
        return
    other = [name for name in table.class_names if name not in class_names]
    raise DataError(
        f"This site's {table.num_classes} classes are not the {len(class_names)} announced, "
        f"in their order; not among them: {', '.join(other[:5]) or 'none'}.",
        why="Its labels would mean other classes than the coordinator's.",
        remedy="Map this site's labels to the announced names: data.label_map in site.toml.",
    )
