"""Names of simulated sites: they become folder names, on any file system."""

import re
from collections.abc import Sequence

_LONGEST = 64


def numbered_sites(count: int) -> list[str]:
    """``site-1`` and so on, padded with zeros so that they sort in order.

    >>> numbered_sites(10)[0]
    'site-01'
    """
    width = len(str(count))
    return [f"site-{number:0{width}d}" for number in range(1, count + 1)]


def name_sites_by_value(values: Sequence[str]) -> list[str]:
    """A distinct name for each of distinct values: the value, where a folder may bear it.

    Other characters than ASCII letters, digits, dot, underscore and hyphen become
    hyphens; names that differ in nothing but case, or not at all any more, get a number.

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
