"""Where the embedded pictures come from: drawn once for a size, then mapped from disk."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.fieldmarks.draw import VERSION, draw
from fgvc_core.data.fieldmarks.drawn import Drawn, Picture, ensure_drawn, open_drawn
from fgvc_core.data.fieldmarks.scene import (
    CAMERAS,
    SITE_NAMES,
    SITES,
    draw_individual,
    draw_scene,
)
from fgvc_core.data.fieldmarks.species import SPECIES
from fgvc_core.data.table import SPLITS, Split

PICTURES_A_SUBJECT = 3


@dataclass(frozen=True)
class Facts:
    """What is known of one embedded picture before it is drawn."""

    label: int
    subject: int
    site: str
    camera: str


def facts(seed: int, split: Split, index: int) -> Facts:
    """One picture's facts; they do not depend on how many pictures there are."""
    classes = len(SPECIES)
    # Twelve pictures in a row show all species; a subject's pictures are rows apart.
    label, visit = index % classes, index // classes
    subject = visit // PICTURES_A_SUBJECT * classes + label
    site = _generator(seed, split, "subject", subject).integers(len(SITE_NAMES))
    camera = _generator(seed, split, "camera", index).integers(len(CAMERAS))
    return Facts(label, subject, SITE_NAMES[site], CAMERAS[camera])


def render(seed: int, split: Split, index: int, size: int) -> Picture:
    """One picture, its parts and its box; see :func:`draw`."""
    known = facts(seed, split, index)
    individual = draw_individual(_generator(seed, split, "individual", known.subject))
    scene = draw_scene(_generator(seed, split, "scene", index))
    return draw(SPECIES[known.label], individual, SITES[known.site], scene, size)


@dataclass(frozen=True)
class FieldmarksSource:
    """The embedded pictures of one size.

    Rows count through train, test and pool in this order. Cheap to send to a worker:
    pictures are mapped from the cache where they are used.

    Attributes:
        seed: Of the whole set.
        counts: Pictures of each split, in the order of ``SPLITS``.
        size: Side, in pixels.
        cache: Folder of the cache.
    """

    seed: int
    counts: tuple[int, int, int]
    size: int
    cache: Path

    def picture(self, row: int, size: int | None = None) -> NDArray[np.uint8]:
        """uint8 (size, size, 3) of a row; another size than the set's is drawn anew."""
        split, index = self._at(row)
        if size is not None and size > self.size:
            return render(self.seed, split, index, size)[0]
        return np.asarray(self.pictures(split)[index])

    def content_key(self, row: int) -> bytes:
        """A digest that names seed, split, index, size and the drawing's version."""
        split, index = self._at(row)
        text = f"fieldmarks {VERSION} {self.seed} {split} {index} {self.size}"
        return hashlib.sha256(text.encode()).digest()

    def pictures(self, split: Split) -> NDArray[np.uint8]:
        """uint8 (N, size, size, 3) of a split, mapped read-only.

        Raises:
            DataError: if the cached file is damaged, or cannot be written.
        """
        return _load(self, split).pictures_NHWC

    def parts(self, split: Split) -> NDArray[np.float32]:
        """float32 (N, P, 3) of a split."""
        return _load(self, split).parts_NP3

    def boxes(self, split: Split) -> NDArray[np.float32]:
        """float32 (N, 4) of a split."""
        return _load(self, split).boxes_N4

    def ensure(self, split: Split) -> None:
        """Draw a split that is not cached yet; one process draws, others wait.

        Raises:
            DataError: if the cache cannot be written.
        """
        ensure_drawn(
            self.stem(split),
            self.counts[SPLITS.index(split)],
            self.size,
            lambda index: render(self.seed, split, index, self.size),
        )

    def stem(self, split: Split) -> Path:
        """Where a split's cached files are, and how their names begin."""
        count = self.counts[SPLITS.index(split)]
        name = f"v{VERSION}-{self.seed}-{split}-{count}-{self.size}px"
        return self.cache / "fieldmarks" / name

    def _at(self, row: int) -> tuple[Split, int]:
        for split, count in zip(SPLITS, self.counts, strict=True):
            if 0 <= row < count:
                return split, row
            row -= count
        raise IndexError(row)


# The check of every byte is done once a process, not for every picture.
@lru_cache(maxsize=32)
def _load(source: FieldmarksSource, split: Split) -> Drawn:
    source.ensure(split)
    return open_drawn(source.stem(split), source.counts[SPLITS.index(split)], source.size)


def _generator(seed: int, split: Split, what: str, number: int) -> np.random.Generator:
    text = f"fieldmarks {seed} {split} {what} {number}"
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
