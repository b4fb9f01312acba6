"""What a site does with a request: check it, score what was received, train, answer.

A worker process keeps what is expensive between messages: the learner of a recipe,
and the examples of the sites that it served last. Neither carries anything from one
site to another: a learner's travelling tensors are overwritten by each request, and
everything else in it is frozen.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core import __version__
from fgvc_core.data.left_out import LeftOut
from fgvc_core.data.split import held_names, validation_mask
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError, PeerError
from fgvc_core.experiment import make_learner, pick_device
from fgvc_core.privacy.settings import Unit
from fgvc_core.privacy.units import protected_units, unit_names
from fgvc_core.protocol.code import code_digest
from fgvc_core.protocol.messages import Reply, Request, Scores, fixed_seconds
from fgvc_core.protocol.ranges import stated_loss, stated_sum
from fgvc_core.protocol.tensor_names import local
from fgvc_core.recipe import Recipe, parse_recipe
from fgvc_core.training.evaluation import Evaluation
from fgvc_core.training.examples import Examples
from fgvc_core.training.learner import Learner
from fgvc_core.wire.arrays import PackedTensor, TensorSpec, spec_of
from fgvc_core.wire.decode import decode_model
from fieldmark.client.reading import data_settings, load_site_table
from fieldmark.client.site import Site
from fieldmark.client.stages.train import RoundWork
from fieldmark.client.weights import site_weights

SITES_KEPT = 256
"""How many sites' examples one worker process keeps at hand; pictures are mapped from
the cache, so that a site costs little more than its labels."""


@dataclass(frozen=True)
class SiteExamples:
    """A site's own two splits; under differential privacy also who belongs to which unit."""

    train: Examples
    validation: Examples
    train_units: NDArray[np.int64] | None = None
    validation_units: NDArray[np.int64] | None = None
    left_out: LeftOut = field(default_factory=LeftOut)


class Desk:
    """What one worker process keeps between messages."""

    def __init__(self) -> None:
        self._learners: dict[tuple[Any, ...], tuple[Learner, dict[str, TensorSpec]]] = {}
        self._examples: OrderedDict[tuple[Any, ...], SiteExamples] = OrderedDict()
        self._tables: dict[tuple[Any, ...], tuple[ExampleTable, LeftOut]] = {}
        self.fresh: dict[str, NDArray[np.float32]] = {}
        """Local tensors as every site has them before its first round."""
        self.lock = threading.Lock()

    def learner(
        self, site: Site, recipe: Recipe, num_classes: int, device: torch.device
    ) -> tuple[Learner, dict[str, TensorSpec]]:
        """The recipe's learner and the specs of its travelling tensors."""
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
        """A site's examples, from memory if this process served it lately."""
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
            self._examples[key] = found
            while len(self._examples) > SITES_KEPT:
                self._examples.popitem(last=False)
        return self._examples[key]

    def table(
        self, site: Site, recipe: Recipe, class_names: tuple[str, ...], tolerant: bool = False
    ) -> tuple[ExampleTable, LeftOut]:
        """The table that a site's rows are taken from, and what it leaves out.

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


_desk = Desk()


def leaves_out(site: Site, unit: Unit | None) -> bool:
    """Whether pictures at fault count as nothing, instead of ending the work.

    Under differential privacy they have to: an answer must not depend on one of them. The
    data of a simulated site were looked through before the run.
    """
    return site.rows is None and (unit is not None or site.settings.data.faults == "leave-out")


def log_left_out(site: Site, left_out: LeftOut) -> None:
    """Say in the site's own log which rows count as nothing, and why."""
    if left_out.total:
        logging.getLogger(f"fieldmark.site.{site.home}").warning(
            "%d rows of the data count as nothing: %s",
            left_out.total,
            "; ".join(left_out.sentences()),
        )


@contextmanager
def learner_at_the_desk(
    site: Site, recipe: Recipe, class_names: tuple[str, ...]
) -> Iterator[tuple[Learner, dict[str, TensorSpec]]]:
    """This process's learner, for one piece of work at a time; no picture is touched."""
    device = pick_device(site.settings.resources.device)
    torch.set_num_threads(site.settings.resources.threads)
    with _desk.lock:
        yield _desk.learner(site, recipe, len(class_names), device)


@contextmanager
def at_the_desk(
    site: Site, recipe: Recipe, class_names: tuple[str, ...], unit: Unit | None = None
) -> Iterator[tuple[Learner, dict[str, TensorSpec], SiteExamples]]:
    """This process's learner and a site's examples, for one piece of work at a time."""
    with learner_at_the_desk(site, recipe, class_names) as (learner, specs):
        yield learner, specs, _desk.examples(site, recipe, learner, class_names, unit)


def split_examples(
    site: Site,
    recipe: Recipe,
    learner: Learner,
    table: ExampleTable,
    unit: Unit | None = None,
    left_out: LeftOut | None = None,
) -> SiteExamples:
    """A site's own rows of a table, split by the keyed hash of their subjects.

    Args:
        site: Whose.
        recipe: Says which share is kept for validation.
        learner: Decides how pictures are decoded.
        table: All rows.
        unit: What is protected; None without differential privacy.
        left_out: What the table has left out; pictures that cannot be read are added and left
            out too. None: such a picture raises.
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
    return SiteExamples(train, validation, of_train, of_validation, left_out)


def _unit_sides(
    site: Site, recipe: Recipe, table: ExampleTable, unit: Unit
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Positions for training and for validation, and the units of each.

    Protected units are found among all pictures, and each is on one side as a whole.
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
    """A site's own rows of a table, without differential privacy: (training, validation)."""
    table = own_rows(site, table)
    held = held_rows(site, recipe, table)
    return table.take(np.flatnonzero(~held)), table.take(np.flatnonzero(held))


def held_rows(site: Site, recipe: Recipe, table: ExampleTable) -> NDArray[np.bool_]:
    """bool (N,), which of a site's own rows are kept for validation, without privacy."""
    held = validation_mask(table, recipe.data.val_fraction, site.split_key)
    if held.all():
        # A site of very few subjects may have drawn them all: it trains on them instead. Not
        # under differential privacy, where one subject more would then move all the others.
        held[:] = False
    return held


def own_rows(site: Site, table: ExampleTable) -> ExampleTable:
    """The rows that a site trains on and validates with."""
    return table.take(site.rows) if site.rows is not None else table.where("train")


def pictures_without_labels(
    site: Site, recipe: Recipe, learner: Learner, class_names: tuple[str, ...]
) -> ExampleTable:
    """What a site may learn from without labels: its part of the pool, and what it trains on."""
    tolerant = leaves_out(site, None)
    table, of_table = _desk.table(site, recipe, class_names, tolerant)
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
    """The table that a site's rows are taken from, as this process holds it."""
    return _desk.table(site, recipe, recipe.data.classes or ())[0]


def read_announcement(request: Request) -> Recipe:
    """The recipe that a roll call carries.

    Raises:
        PeerError: if the recipe is not the one that its digest names.
        ConfigurationError: if it is no recipe of ours.
    """
    recipe = parse_recipe(request.recipe, where="announced recipe")
    if recipe.digest != request.recipe_digest:
        raise PeerError("The announced recipe is not the one that its digest names.")
    return recipe


def answer_round(
    site: Site,
    request: Request,
    recipe: Recipe,
    class_names: tuple[str, ...],
    packed: Mapping[str, PackedTensor],
) -> tuple[Reply, dict[str, Any]]:
    """Score the received model and, for ``train``, train it.

    Returns:
        The reply (tensors' digests not filled in yet) and the tensors that go along.

    Raises:
        PeerError: if the received tensors are not what the recipe's model has.
        DataError: if this site's pictures or labels are wrong.
    """
    started = time.perf_counter()
    with at_the_desk(site, recipe, class_names) as (learner, specs, examples):
        work = round_work(site, request, recipe, learner)
        work.load(decode_model(packed, work.expected(specs), recipe.wire))
        scored, _ = learner.evaluate(examples.validation, recipe.evaluate.batch_size)
        loss, trained = None, len(examples.train)
        outgoing: dict[str, Any] = {}
        if request.kind == "train":
            loss, outgoing = work.train(examples.train)
    reply = Reply(
        **echo(site, request),
        code="ok",
        examples=trained,
        loss=None if loss is None else stated_loss(loss),
        scores=scores_of(scored),
        seconds=fixed_seconds(time.perf_counter() - started),
    )
    return reply, outgoing


def scores_of(scored: Evaluation) -> Scores:
    """Scores as a reply states them."""
    return Scores(
        examples=scored.examples,
        correct=scored.correct,
        loss_sum=stated_sum(scored.loss_sum),
        macro_f1=scored.macro_f1,
    )


def round_work(site: Site, request: Request, recipe: Recipe, learner: Learner) -> RoundWork:
    """One round's work on this process's learner."""
    return RoundWork(site, request, recipe, learner, _desk.fresh)


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


def echo(site: Site, request: Request) -> dict[str, Any]:
    """The fields of a reply that repeat the request's."""
    return {
        "kind": request.kind,
        "run": request.run,
        "round": request.round,
        "site": site.name,
        "nonce": request.nonce,
        "recipe_digest": request.recipe_digest,
        "version": __version__,
        "code_digest": code_digest(),
    }
