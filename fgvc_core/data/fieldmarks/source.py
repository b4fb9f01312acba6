"""Where the embedded pictures come from: drawn once for a size, then mapped from disk."""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from fgvc_core.data.fieldmarks.draw import VERSION, draw
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


def render(
    seed: int, split: Split, index: int, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
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
        """uint8 (N, size, size, 3) of a split, mapped read-only."""
        return _load(self._file(split, "pictures"), self, split)

    def parts(self, split: Split) -> NDArray[np.float32]:
        """float32 (N, P, 3) of a split."""
        return _load(self._file(split, "parts"), self, split)

    def boxes(self, split: Split) -> NDArray[np.float32]:
        """float32 (N, 4) of a split."""
        return _load(self._file(split, "boxes"), self, split)

    def _file(self, split: Split, what: str) -> Path:
        count = self.counts[SPLITS.index(split)]
        name = f"v{VERSION}-{self.seed}-{split}-{count}-{self.size}px-{what}.npy"
        return self.cache / "fieldmarks" / name

    def _at(self, row: int) -> tuple[Split, int]:
        for split, count in zip(SPLITS, self.counts, strict=True):
            if row < count:
                return split, row
            row -= count
        raise IndexError(row)

    def ensure(self, split: Split) -> None:
        """Draw a split that is not cached yet; one process draws, others wait."""
        last = self._file(split, "pictures")
        if last.exists():
            return
        last.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{last}.lock"):
            if last.exists():
                return
            drawn = [
                render(self.seed, split, index, self.size)
                for index in range(self.counts[SPLITS.index(split)])
            ]
            # The pictures are renamed last: where they are, the rest is too.
            for which, what in ((1, "parts"), (2, "boxes"), (0, "pictures")):
                path = self._file(split, what)
                aside = path.with_suffix(".part")
                with aside.open("wb") as file:
                    np.save(file, np.stack([d[which] for d in drawn]), allow_pickle=False)
                os.replace(aside, path)


@lru_cache(maxsize=32)
def _load(path: Path, source: FieldmarksSource, split: Split) -> NDArray[np.uint8]:
    source.ensure(split)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _generator(seed: int, split: Split, what: str, number: int) -> np.random.Generator:
    text = f"fieldmarks {seed} {split} {what} {number}"
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
