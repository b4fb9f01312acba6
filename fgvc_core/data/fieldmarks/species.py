"""The twelve invented species: their distinguishing marks and their taxonomy.

Species of one family share bill, wing and tail, and differ in one to three small parts of the
head. Nothing else in a picture depends on the species.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]

LEVELS = ("order", "family", "species")

PART_VALUES: dict[str, tuple[str, ...]] = {
    "crown": ("plain", "black", "rufous", "yellow"),
    "eye-ring": ("none", "white"),
    "bill": ("short and dark", "long and orange"),
    "wing bars": ("none", "two white"),
    "throat": ("plain", "black", "red"),
    "tail tip": ("plain", "white"),
}
"""Possible values of each part; together they are the classes' attributes."""

COLOURS: dict[str, Colour] = {
    "black": (24, 22, 26),
    "rufous": (188, 74, 24),
    "yellow": (247, 208, 40),
    "white": (246, 246, 240),
    "red": (206, 30, 38),
}


@dataclass(frozen=True)
class Species:
    """One class.

    Attributes:
        name: Common name.
        family: Family.
        order: Order.
        marks: Part -> value, one for each of ``PART_VALUES``.
    """

    name: str
    family: str
    order: str
    marks: dict[str, str]

    @property
    def said(self) -> str:
        """Description of the marks on the head, in the style of a field guide."""
        told = [
            f"{value} {part}"
            for part in ("crown", "eye-ring", "throat")
            if (value := self.marks[part]) not in ("plain", "none")
        ]
        return ", ".join(told) if told else "plain head"


def _family(
    order: str, family: str, shared: dict[str, str], members: dict[str, tuple[str, str, str]]
) -> tuple[Species, ...]:
    return tuple(
        Species(
            f"{name} {family}",
            family,
            order,
            {"crown": crown, "eye-ring": ring, "throat": throat, **shared},
        )
        for name, (crown, ring, throat) in members.items()
    )


def _shared(bill: str, bars: str, tail: str) -> dict[str, str]:
    return {"bill": bill, "wing bars": bars, "tail tip": tail}


SPECIES: tuple[Species, ...] = (
    *_family(
        "Conebills",
        "thrummer",
        _shared("short and dark", "none", "plain"),
        {
            "Sooty-capped": ("black", "none", "plain"),
            "Fox-capped": ("rufous", "none", "plain"),
            "Ember-throated": ("black", "none", "red"),
        },
    ),
    *_family(
        "Conebills",
        "barwing",
        _shared("short and dark", "two white", "white"),
        {
            "Spectacled": ("plain", "white", "plain"),
            "Bibbed": ("plain", "none", "black"),
            "Saffron": ("yellow", "white", "plain"),
        },
    ),
    *_family(
        "Spearbills",
        "lancet",
        _shared("long and orange", "two white", "plain"),
        {
            "Russet": ("rufous", "none", "plain"),
            "Ringed": ("rufous", "white", "plain"),
            "Cherry": ("plain", "none", "red"),
        },
    ),
    *_family(
        "Spearbills",
        "wandtail",
        _shared("long and orange", "none", "white"),
        {
            "Gilded": ("yellow", "none", "plain"),
            "Cravat": ("yellow", "none", "black"),
            "Monocled": ("black", "white", "plain"),
        },
    ),
)

CLASS_NAMES = tuple(species.name for species in SPECIES)
TAXONOMY = tuple((s.order, s.family, s.name) for s in SPECIES)
ATTRIBUTE_NAMES = tuple(f"{part}: {value}" for part, vs in PART_VALUES.items() for value in vs)


def attributes_KA() -> NDArray[np.float32]:
    """float32 (12, A): 1 if a species has a part's value, else 0."""
    rows = [
        [float(species.marks[part] == value) for part, vs in PART_VALUES.items() for value in vs]
        for species in SPECIES
    ]
    return np.array(rows, dtype=np.float32)
