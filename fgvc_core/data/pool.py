"""Who holds which picture without a label, in a simulation."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.settings import PartitionSettings
from fgvc_core.data.table import ExampleTable

Rows = NDArray[np.int64]


def deal_pool(
    table: ExampleTable, held: Mapping[str, Rows], settings: PartitionSettings, seed: int
) -> dict[str, Rows]:
    """Deal the pool of a table to sites that hold labelled pictures already.

    By the partition's column, where it has one, so that a site's pool looks as its labelled
    pictures do; else equal numbers of subjects, whatever the scheme: classes are not known. A
    subject in the pool may have labelled pictures at another site.

    Args:
        table: The whole table.
        held: Site name -> positions of its labelled pictures.
        settings: ``[partition]``.
        seed: Any non-negative integer.

    Returns:
        Site name -> int64 sorted positions; together they are the pool. Empty without a pool.
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
    """Position -> the site whose labelled pictures have the same value of the column."""
    column = table.columns.get(settings.column or "")
    if settings.scheme != "column" or column is None:
        return {}
    site_of = {column[i]: site for site, own in held.items() for i in own.tolist()}
    return {i: site_of[value] for i, value in enumerate(column) if value in site_of}
