"""The taxonomy of a model's classes, as stored in its checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.fieldmarks.species import CLASS_NAMES, LEVELS, TAXONOMY
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError

KEY = "taxonomy"
"""Key in a checkpoint's metadata."""


@dataclass(frozen=True)
class Taxonomy:
    """L levels from coarse to fine over K classes.

    Attributes:
        levels: Names of the L levels; the last level is the classes themselves.
        chains: K tuples of L names.
    """

    levels: tuple[str, ...]
    chains: tuple[tuple[str, ...], ...]

    def names(self, level: int) -> tuple[str, ...]:
        """The different names at a level, in the order of their first class."""
        return tuple(dict.fromkeys(chain[level] for chain in self.chains))

    def summed(self, probabilities_NK: NDArray[np.float64], level: int) -> NDArray[np.float64]:
        """Probabilities (N, M) of the M names at a level: sums over their classes."""
        names = self.names(level)
        member_KM = np.array([[chain[level] == name for name in names] for chain in self.chains])
        return probabilities_NK @ member_KM.astype(np.float64)

    def as_metadata(self) -> dict[str, str]:
        """Entry for a checkpoint's metadata."""
        return {KEY: json.dumps({"levels": self.levels, "classes": self.chains})}


def flat(class_names: tuple[str, ...]) -> Taxonomy:
    """The taxonomy of unrelated classes: one level."""
    return Taxonomy(("class",), tuple((name,) for name in class_names))


def taxonomy_of(table: ExampleTable) -> Taxonomy | None:
    """A table's taxonomy, or None."""
    return Taxonomy(table.taxonomy_levels, table.taxonomy) if table.taxonomy else None


def by_last_word(class_names: tuple[str, ...]) -> Taxonomy:
    """The taxonomy of CUB, whose names end with the group: ``Sooty Albatross``, ``Albatross``."""
    chains = tuple((name.split()[-1] if name.split() else name, name) for name in class_names)
    return Taxonomy(("group", "species"), chains)


def read_taxonomy(
    metadata: Mapping[str, str], class_names: tuple[str, ...], data_name: str = ""
) -> Taxonomy:
    """A checkpoint's taxonomy; if it has none, one derived from the class names.

    Args:
        metadata: The checkpoint's metadata.
        class_names: Its classes.
        data_name: The recipe's ``data.name``; "cub" names contain their group.

    Raises:
        DataError: if the taxonomy is malformed, or of other classes.
    """
    if KEY not in metadata:
        known = dict(zip(CLASS_NAMES, TAXONOMY, strict=True))
        if set(class_names) <= set(known):
            return Taxonomy(LEVELS, tuple(known[name] for name in class_names))
        if data_name == "cub":
            return by_last_word(class_names)
        return flat(class_names)
    try:
        found = json.loads(metadata[KEY])
        levels = tuple(str(level) for level in found["levels"])
        chains = tuple(tuple(str(name) for name in chain) for chain in found["classes"])
        sound = tuple(chain[-1] for chain in chains) == class_names
        sound = sound and all(len(chain) == len(levels) for chain in chains)
    except (ValueError, KeyError, TypeError, IndexError):
        sound = False
    if not sound:
        raise DataError(
            "The checkpoint's taxonomy is not one of its own classes.",
            why="At which level an answer is sure could not be told.",
            remedy="Take the checkpoint as the run has written it.",
        )
    return Taxonomy(levels, chains)
