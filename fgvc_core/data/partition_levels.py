"""A partition and the taxonomy: related classes side by side, or counts by a coarser level."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import ConfigurationError, nearest

Counts = dict[str, NDArray[np.int64]]


def at_level(counts: Counts, table: ExampleTable, level: str) -> tuple[Counts, tuple[str, ...]]:
    """Sum each site's counts by group of a taxonomy level, in the taxonomy's order.

    Args:
        counts: Site -> int64 (K,).
        table: The table with the classes and the taxonomy.
        level: One of ``table.taxonomy_levels``.

    Returns:
        Site -> int64 (G,), and G names.

    Raises:
        ConfigurationError: if the data set has no such level.
    """
    if level not in table.taxonomy_levels:
        raise ConfigurationError(
            f"--level '{level}' is no level of this data set's taxonomy.",
            remedy=nearest(level, table.taxonomy_levels, 1)
            or f"Levels: {', '.join(table.taxonomy_levels) or 'it has no taxonomy'}.",
        )
    depth = table.taxonomy_levels.index(level)
    owners = [path[: depth + 1] for path in table.taxonomy]
    groups = list(dict.fromkeys(owners[k] for k in kin_order(table)))
    totals: Counts = {}
    for site, counts_K in counts.items():
        totals_G = np.zeros(len(groups), dtype=np.int64)
        np.add.at(totals_G, [groups.index(owner) for owner in owners], counts_K)
        totals[site] = totals_G
    return totals, tuple(group[-1] for group in groups)


def kin_order(table: ExampleTable) -> list[int]:
    """Order of the classes with related ones side by side, families by their first class."""
    first: dict[tuple[str, ...], int] = {}
    for k, path in enumerate(table.taxonomy):
        for depth in range(len(path)):
            first.setdefault(path[: depth + 1], k)
    if not table.taxonomy:
        return list(range(table.num_classes))
    return sorted(
        range(table.num_classes),
        key=lambda k: [first[table.taxonomy[k][: d + 1]] for d in range(len(table.taxonomy[k]))],
    )


def families(table: ExampleTable) -> list[tuple[str, int]]:
    """(name, number of classes) of the groups that stand side by side in :func:`kin_order`.

    They are of the finest level above the classes that groups any of them; empty if none does.
    """
    order = kin_order(table)
    for depth in reversed(range(len(table.taxonomy_levels) - 1)):
        spans: list[tuple[str, int]] = []
        before: Sequence[str] = ()
        for k in order:
            path = table.taxonomy[k][: depth + 1]
            if path == before:
                spans[-1] = (spans[-1][0], spans[-1][1] + 1)
            else:
                spans.append((path[-1], 1))
            before = path
        if 1 < len(spans) < table.num_classes:
            return spans
    return []
