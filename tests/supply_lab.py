"""What an installation brings, by the metadata of what is installed, and what is pinned."""

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def brought(name, extras=("",), found=None):
    """Names of all distributions that an installation with these extras brings."""
    found = set() if found is None else found
    key = re.sub("[-_.]+", "-", name).lower()
    if key in found:
        return found
    try:
        needed = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return found
    found.add(key)
    for text in needed:
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras):
            brought(one.name, ("", *one.extras), found)
    return found


def pinned():
    """Name -> version, as constraints.txt has them."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)
