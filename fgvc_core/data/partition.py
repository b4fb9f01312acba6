"""Distributes a table's labeled pictures and pool over simulated sites, and names the sites.

flwr-datasets (https://flower.ai/docs/datasets/) partitions a table of subjects with one label
each instead of pictures, so that no subject is at two sites. Rows are shuffled first, because
most partitioners cut consecutive runs.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.components import PARTITIONERS
from fgvc_core.data.files import first_few
from fgvc_core.data.patients import shown_names, shown_subjects
from fgvc_core.data.settings import PartitionSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import ConfigurationError, DataError, nearest
from fgvc_core.seeds import derive_seed
from fgvc_core.words import counted

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

_LONGEST = 64


def numbered_sites(count: int) -> list[str]:
    """Names ``site-1`` and so on, zero-padded so that they sort in order.

    >>> numbered_sites(10)[0]
    'site-01'
    """
    width = len(str(count))
    return [f"site-{number:0{width}d}" for number in range(1, count + 1)]


def name_sites_by_value(values: Sequence[str]) -> list[str]:
    """A distinct name for each distinct value, valid as a folder name on any file system.

    Characters other than ASCII letters, digits, dot, underscore and hyphen become hyphens;
    names that are then equal, ignoring case, get a number.

    >>> name_sites_by_value(["Lyon", "upper extremity"])
    ['Lyon', 'upper-extremity']
    """
    taken: set[str] = set()
    names = []
    for value in values:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", value).lstrip("._-")[:_LONGEST].rstrip("-")
        stem = stem or "site"
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


Positions = NDArray[np.int64]

_DRAWS = 100

_ROW = "row"

_LABEL = "label"

_VALUE = "value"


@dataclass(frozen=True)
class Subjects:
    """S subjects in shuffled order: positions and most frequent label of each."""

    positions: tuple[Positions, ...]
    labels_S: NDArray[np.int64]
    class_names: tuple[str, ...]
    values: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)


def partition(
    table: ExampleTable, settings: PartitionSettings, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Distribute the examples of a table over sites, deterministically.

    ``iid`` gives each site an equal number of subjects. ``dirichlet`` draws each class's
    shares from a Dirichlet distribution (Yurochkin et al. 2019,
    https://arxiv.org/abs/1905.12022). ``pathological`` gives each site ``classes_per_site``
    classes, drawn so that all classes are held about equally often (McMahan et al. 2017,
    https://arxiv.org/abs/1602.05629). ``quantity`` draws the sites' sizes from a
    Dirichlet distribution. ``column`` makes one site of each value of a column
    (``subject`` is always available). Draws with fewer than ``min_examples`` at a site are
    repeated.

    Args:
        table: The training split.
        settings: ``[partition]``.
        seed: Any non-negative integer.

    Returns:
        Site name (``site-1``..., or made from the column's value) -> int64 sorted
        positions in ``table``; each example is at exactly one site.

    Raises:
        ConfigurationError: for a column that is missing from the recipe or the table, or
            more classes per site than exist.
        DataError: for more sites than subjects, a class that no site would hold, a
            subject that a column puts at two sites, or too few examples at a site.
    """
    _refuse_unheld_classes(table, settings.unseen)
    rng = np.random.default_rng(derive_seed(seed, "order"))
    if settings.scheme == "column":
        return _by_column(table, settings, rng)
    subjects = _group(table, rng)
    if settings.sites > len(subjects):
        noun = "examples" if len(subjects) == len(table) else "subjects"
        raise DataError(
            f"partition.sites = {settings.sites}, but there are only {len(subjects)} {noun} "
            "to train on.",
            why="Every site needs at least one, and none may be at two sites.",
            remedy="Ask for fewer sites, or bring more data.",
        )
    deal = PARTITIONERS.get(settings.scheme).make
    shares: list[Positions] = []
    for draw in range(_DRAWS):
        shares = deal(subjects, settings, derive_seed(seed, settings.scheme, draw))
        if min(map(len, shares)) >= settings.min_examples:
            return dict(zip(numbered_sites(settings.sites), shares, strict=True))
        if settings.scheme not in _REDRAWN:
            break
    raise _too_few(dict(zip(numbered_sites(settings.sites), shares, strict=True)), settings)


def _group(table: ExampleTable, rng: np.random.Generator, values: Sequence[str] = ()) -> Subjects:
    at: dict[str, list[int]] = {}
    for position, subject in enumerate(table.subjects):
        at.setdefault(subject, []).append(position)
    # Sorted before the shuffle, so that the result does not depend on file order.
    names = sorted(at)
    shuffled = [names[i] for i in rng.permutation(len(names))]
    labels = table.labels_N.tolist()
    commonest = [
        min(Counter(labels[p] for p in at[name]).items(), key=lambda kv: (-kv[1], kv[0]))[0]
        for name in shuffled
    ]
    return Subjects(
        tuple(np.array(at[name], dtype=np.int64) for name in shuffled),
        np.array(commonest, dtype=np.int64),
        table.class_names,
        tuple(values[at[name][0]] for name in shuffled) if values else (),
    )


@PARTITIONERS.register("iid")
def _iid(subjects: Subjects, settings: PartitionSettings, seed: int) -> list[Positions]:
    from flwr_datasets.partitioner import IidPartitioner

    return _run(IidPartitioner(settings.sites), subjects, {})


@PARTITIONERS.register("dirichlet")
def _dirichlet(subjects: Subjects, settings: PartitionSettings, seed: int) -> list[Positions]:
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions=settings.sites,
        partition_by=_LABEL,
        alpha=settings.alpha,
        # Redraws are done here, counting pictures; the partitioner would count subjects.
        min_partition_size=0,
        shuffle=False,
        seed=seed,
    )
    return _run(partitioner, subjects, {_LABEL: subjects.labels_S.tolist()})


@PARTITIONERS.register("pathological")
def _pathological(subjects: Subjects, settings: PartitionSettings, seed: int) -> list[Positions]:
    from flwr_datasets.partitioner import PathologicalPartitioner

    sites, per_site = settings.sites, settings.classes_per_site
    classes, counts = np.unique(subjects.labels_S, return_counts=True)
    holds = _class_sets(len(classes), sites, per_site, np.random.default_rng(seed))
    uses_K = np.bincount(np.concatenate(holds), minlength=len(classes))
    _refuse_scarce(uses_K, counts, [subjects.class_names[k] for k in classes], settings)
    # One shard for each (site, class) pair. The partitioner gives shard p the class p modulo K:
    # with the most used classes first, each class gets as many shards as it has uses.
    order = np.argsort(-uses_K, kind="stable")
    rank_K = np.argsort(order)
    rank_S = rank_K[np.searchsorted(classes, subjects.labels_S)]
    partitioner = PathologicalPartitioner(
        num_partitions=sites * per_site,
        partition_by=_LABEL,
        num_classes_per_partition=1,
        class_assignment_mode="first-deterministic",
        shuffle=False,
        seed=seed,
    )
    shards = _run(partitioner, subjects, {_LABEL: rank_S.tolist()})
    taken_K = np.zeros(len(classes), dtype=np.int64)
    shares = []
    for held in holds:
        shares.append(
            np.sort(np.concatenate([shards[taken_K[k] * len(classes) + rank_K[k]] for k in held]))
        )
        taken_K[held] += 1
    return shares


@PARTITIONERS.register("quantity")
def _quantity(subjects: Subjects, settings: PartitionSettings, seed: int) -> list[Positions]:
    from flwr_datasets.partitioner import SizePartitioner

    rng = np.random.default_rng(seed)
    spare = len(subjects) - settings.sites
    shares = rng.dirichlet(np.full(settings.sites, settings.alpha)) * spare
    sizes = np.floor(shares).astype(np.int64)
    # Largest remainder method, so that the sizes add up exactly.
    for site in np.argsort(sizes - shares, kind="stable")[: spare - int(sizes.sum())]:
        sizes[site] += 1
    return _run(SizePartitioner((sizes + 1).tolist()), subjects, {})


_REDRAWN = frozenset({"dirichlet", "pathological", "quantity"})


def _by_column(
    table: ExampleTable, settings: PartitionSettings, rng: np.random.Generator
) -> dict[str, Positions]:
    from flwr_datasets.partitioner import GroupedNaturalIdPartitioner

    values = _column(table, settings)
    empty = [table.ids[i] for i, value in enumerate(values) if not value]
    if empty:
        raise DataError(
            f"{counted(len(empty), 'example has', 'examples have')} no value in column "
            f"'{settings.column}': {first_few(empty)}.",
            why="partition.column names the column that says which site holds an example.",
            remedy="Fill the column in, or choose another.",
        )
    pairs = set(zip(table.subjects, values, strict=True))
    counts = Counter(subject for subject, _ in pairs)
    parted = shown_subjects([s for s, n in counts.items() if n > 1], table.subjects, table.ids)
    if parted:
        raise DataError(
            f"Column '{settings.column}' puts {counted(len(parted), 'subject')} at two sites: "
            f"{first_few(parted)}.",
            why="Pictures of one subject never meet at two sites.",
            remedy="Choose a column that is the same for all pictures of a subject.",
        )
    subjects = _group(table, rng, values)
    partitioner = GroupedNaturalIdPartitioner(_VALUE, group_size=1, sort_unique_ids=True)
    shares = _run(partitioner, subjects, {_VALUE: list(subjects.values)})
    dealt = dict(zip(name_sites_by_value(sorted(set(values))), shares, strict=True))
    if min(map(len, shares)) < settings.min_examples:
        raise _too_few(dealt, settings)
    return dealt


def _column(table: ExampleTable, settings: PartitionSettings) -> tuple[str, ...]:
    names = shown_names(table.subjects, table.ids)
    known = {"subject": tuple(names[subject] for subject in table.subjects), **table.columns}
    if settings.column is None:
        raise ConfigurationError(
            "partition.scheme = 'column' needs partition.column.",
            why="It says which column of the table names the site.",
            remedy=f"Columns here: {', '.join(sorted(known))}.",
        )
    if settings.column not in known:
        raise ConfigurationError(
            f"partition.column = '{settings.column}' is no column of the data set.",
            why=f"Its columns are: {', '.join(sorted(known))}.",
            remedy=nearest(settings.column, known) or "Choose one of these.",
        )
    return known[settings.column]


def _run(
    partitioner: "Partitioner", subjects: Subjects, columns: Mapping[str, list[Any]]
) -> list[Positions]:
    """Sorted positions in the table, by partition."""
    from datasets import Dataset

    partitioner.dataset = Dataset.from_dict({_ROW: list(range(len(subjects))), **columns})
    shares = []
    for number in range(partitioner.num_partitions):
        chosen = [subjects.positions[s] for s in partitioner.load_partition(number)[_ROW]]
        shares.append(np.sort(np.concatenate([np.empty(0, np.int64), *chosen])))
    return shares


def _class_sets(
    num_classes: int, sites: int, per_site: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """``per_site`` distinct classes for each site; numbers of uses differ by at most one."""
    uses_K = np.zeros(num_classes, dtype=np.int64)
    holds = []
    for _ in range(sites):
        chosen = np.lexsort((rng.random(num_classes), uses_K))[:per_site]
        uses_K[chosen] += 1
        holds.append(np.sort(chosen))
    return holds


def _refuse_unheld_classes(table: ExampleTable, unseen: Sequence[str]) -> None:
    unlabelled = [table.ids[i] for i in np.flatnonzero(table.labels_N < 0)]
    if unlabelled:
        raise DataError(
            f"{len(unlabelled)} training examples have no label: {first_few(unlabelled)}.",
            why="Sites are dealt labeled examples.",
            remedy="Label them, or move them to the pool.",
        )
    absent = [table.class_names[k] for k in np.flatnonzero(table.class_counts_K() == 0)]
    absent = [name for name in absent if name not in unseen]
    if absent:
        raise DataError(
            f"No site would hold {len(absent)} of {table.num_classes} classes: "
            f"{first_few(absent)}.",
            why="The training split has no example of them.",
            remedy="Take them out of data.classes, or bring examples of them.",
        )


def _refuse_scarce(
    uses_K: NDArray[np.int64],
    counts_K: NDArray[np.int64],
    class_names: Sequence[str],
    settings: PartitionSettings,
) -> None:
    asked = f"{settings.sites} sites of {settings.classes_per_site} classes"
    if settings.classes_per_site > len(class_names):
        raise ConfigurationError(
            f"partition.classes_per_site = {settings.classes_per_site}, but there are only "
            f"{len(class_names)} classes.",
            why="A site holds a class once or not at all.",
            remedy=f"Choose 1 to {len(class_names)}.",
        )
    unheld = [class_names[k] for k in np.flatnonzero(uses_K == 0).tolist()]
    if unheld:
        raise DataError(
            f"No site would hold {len(unheld)} of {len(class_names)} classes: {first_few(unheld)}.",
            why=f"{asked} make {settings.sites * settings.classes_per_site} places, and what no "
            "site holds cannot be learned.",
            remedy="Ask for more sites or more partition.classes_per_site.",
        )
    if (uses_K > counts_K).any():
        scarce = int(np.argmax(uses_K - counts_K))
        raise DataError(
            f"{asked} need '{class_names[scarce]}' at {uses_K[scarce]} sites, but it has only "
            f"{counts_K[scarce]} subjects to deal.",
            why="Every site that holds a class needs a subject of its own.",
            remedy="Ask for fewer sites or fewer partition.classes_per_site.",
        )


def _too_few(dealt: Mapping[str, Positions], settings: PartitionSettings) -> DataError:
    small = [f"{site} ({len(at)})" for site, at in dealt.items() if len(at) < settings.min_examples]
    again = f" after {_DRAWS} draws" if settings.scheme in _REDRAWN else ""
    return DataError(
        f"{len(small)} of {len(dealt)} sites have fewer than partition.min_examples = "
        f"{settings.min_examples} examples{again}: {first_few(small)}.",
        why="So few examples cannot be split for training and validation.",
        remedy="Ask for fewer sites, a larger partition.alpha or a smaller partition.min_examples.",
    )


Rows = NDArray[np.int64]


def deal_pool(
    table: ExampleTable, held: Mapping[str, Rows], settings: PartitionSettings, seed: int
) -> dict[str, Rows]:
    """Distribute the pool of a table over sites that already hold labeled pictures.

    With a partition column, a site's pool has the same column value as its labeled pictures.
    All other schemes deal equal numbers of subjects, because classes are unknown. A subject
    in the pool may have labeled pictures at another site.

    Args:
        table: The whole table.
        held: Site name -> positions of its labeled pictures.
        settings: ``[partition]``.
        seed: Any non-negative integer.

    Returns:
        Site name -> int64 sorted positions, together the pool. Empty without a pool.
    """
    pool = [i for i, split in enumerate(table.splits) if split == "pool"]
    if not pool:
        return {}
    sites = sorted(held)
    holder = _by_value(table, held, settings)
    subjects = sorted({table.subjects[i] for i in pool})
    shuffled = np.random.default_rng(seed).permutation(len(subjects)).tolist()
    dealt = {subjects[at]: sites[number % len(sites)] for number, at in enumerate(shuffled)}
    found: dict[str, list[int]] = {site: [] for site in sites}
    for i in pool:
        found[holder.get(i) or dealt[table.subjects[i]]].append(i)
    return {site: np.array(own, dtype=np.int64) for site, own in found.items()}


def _by_value(
    table: ExampleTable, held: Mapping[str, Rows], settings: PartitionSettings
) -> dict[int, str]:
    """Position -> the site whose labeled pictures have the same value of the column."""
    column = table.columns.get(settings.column or "")
    if settings.scheme != "column" or column is None:
        return {}
    site_of = {column[i]: site for site, own in held.items() for i in own.tolist()}
    return {i: site_of[value] for i, value in enumerate(column) if value in site_of}
