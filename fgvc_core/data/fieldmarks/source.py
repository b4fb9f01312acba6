"""Data set ``fieldmarks``: its picture source, its table, and its contact sheet.

Pictures are drawn once per size, then mapped from the cache.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fgvc_core.data.catalogue import dataset
from fgvc_core.data.fieldmarks.bird import PART_NAMES
from fgvc_core.data.fieldmarks.draw import VERSION, draw
from fgvc_core.data.fieldmarks.drawn import Drawn, Picture, ensure_drawn, open_drawn
from fgvc_core.data.fieldmarks.scene import (
    CAMERAS,
    SITE_NAMES,
    SITES,
    draw_individual,
    draw_scene,
)
from fgvc_core.data.fieldmarks.species import (
    ATTRIBUTE_NAMES,
    CLASS_NAMES,
    LEVELS,
    SPECIES,
    TAXONOMY,
    attributes_KA,
)
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import SPLITS, UNLABELLED, ExampleTable, Split

PICTURES_A_SUBJECT = 3


@dataclass(frozen=True)
class Facts:
    """What is known about one embedded picture before it is drawn."""

    label: int
    subject: int
    site: str
    camera: str


def facts(seed: int, split: Split, index: int) -> Facts:
    """Facts of one picture, independent of the number of pictures."""
    classes = len(SPECIES)
    # Twelve consecutive pictures show all species; a subject's pictures are rows apart.
    label, visit = index % classes, index // classes
    subject = visit // PICTURES_A_SUBJECT * classes + label
    site = _generator(seed, split, "subject", subject).integers(len(SITE_NAMES))
    camera = _generator(seed, split, "camera", index).integers(len(CAMERAS))
    return Facts(label, subject, SITE_NAMES[site], CAMERAS[camera])


def render(seed: int, split: Split, index: int, size: int) -> Picture:
    """Draw one picture with its parts and box; see :func:`draw`."""
    known = facts(seed, split, index)
    individual = draw_individual(_generator(seed, split, "individual", known.subject))
    scene = draw_scene(_generator(seed, split, "scene", index))
    return draw(SPECIES[known.label], individual, SITES[known.site], scene, size)


@dataclass(frozen=True)
class FieldmarksSource:
    """The embedded pictures of one size.

    Rows count through train, test and pool in this order. Pickling is cheap: the pictures are
    mapped from the cache where they are used.

    Attributes:
        seed: Seed of the whole set.
        counts: Number of pictures per split, in the order of ``SPLITS``.
        size: Side in pixels.
        cache: Cache folder.
    """

    seed: int
    counts: tuple[int, int, int]
    size: int
    cache: Path

    def picture(self, row: int, size: int | None = None) -> NDArray[np.uint8]:
        """uint8 (size, size, 3) of a row; a size other than the set's is drawn anew."""
        split, index = self._at(row)
        if size is not None and size > self.size:
            return render(self.seed, split, index, size)[0]
        return np.asarray(self.pictures(split)[index])

    def content_key(self, row: int) -> bytes:
        """Digest of seed, split, index, size and the drawing's version."""
        split, index = self._at(row)
        text = f"fieldmarks {VERSION} {self.seed} {split} {index} {self.size}"
        return hashlib.sha256(text.encode()).digest()

    def pictures(self, split: Split) -> NDArray[np.uint8]:
        """uint8 (N, size, size, 3) of a split, mapped read-only.

        Raises:
            DataError: if the cached file is damaged, or the cache cannot be written.
        """
        return _load(self, split).pictures_NHWC

    def parts(self, split: Split) -> NDArray[np.float32]:
        """float32 (N, P, 3) of a split."""
        return _load(self, split).parts_NP3

    def boxes(self, split: Split) -> NDArray[np.float32]:
        """float32 (N, 4) of a split."""
        return _load(self, split).boxes_N4

    def ensure(self, split: Split) -> None:
        """Draw a split unless it is cached; one process draws, others wait.

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
        """Path and name prefix of a split's cached files."""
        count = self.counts[SPLITS.index(split)]
        name = f"v{VERSION}-{self.seed}-{split}-{count}-{self.size}px"
        return self.cache / "fieldmarks" / name

    def _at(self, row: int) -> tuple[Split, int]:
        for split, count in zip(SPLITS, self.counts, strict=True):
            if 0 <= row < count:
                return split, row
            row -= count
        raise IndexError(row)


# Cached, so that the checksums are verified once per process, not for every picture.
@lru_cache(maxsize=32)
def _load(source: FieldmarksSource, split: Split) -> Drawn:
    source.ensure(split)
    return open_drawn(source.stem(split), source.counts[SPLITS.index(split)], source.size)


def _generator(seed: int, split: Split, what: str, number: int) -> np.random.Generator:
    text = f"fieldmarks {seed} {split} {what} {number}"
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


@dataset("fieldmarks", knows=("taxonomy", "attributes"))
def build_table(settings: DataSettings, cache: Path) -> ExampleTable:
    """Build the table of the embedded set, and draw its pictures unless they are cached.

    Args:
        settings: Seed, number of pictures per split, size.
        cache: Cache folder.
    """
    counts = (settings.fieldmarks_train, settings.fieldmarks_test, settings.fieldmarks_pool)
    source = FieldmarksSource(settings.fieldmarks_seed, counts, settings.image_size, cache)
    splits: list[Split] = [s for s, n in zip(SPLITS, counts, strict=True) for _ in range(n)]
    indices = [i for n in counts for i in range(n)]
    known = [facts(source.seed, s, i) for s, i in zip(splits, indices, strict=True)]
    filled = [s for s, n in zip(SPLITS, counts, strict=True) if n]
    return ExampleTable(
        source=source,
        rows=np.arange(len(splits), dtype=np.int64),
        ids=tuple(f"{s}/{i:06d}" for s, i in zip(splits, indices, strict=True)),
        labels_N=np.array(
            [UNLABELLED if s == "pool" else k.label for s, k in zip(splits, known, strict=True)],
            dtype=np.int64,
        ),
        splits=tuple(splits),
        subjects=tuple(f"{s}-{k.subject:05d}" for s, k in zip(splits, known, strict=True)),
        class_names=CLASS_NAMES,
        columns={
            "site": tuple(k.site for k in known),
            "camera": tuple(k.camera for k in known),
        },
        taxonomy=TAXONOMY,
        taxonomy_levels=LEVELS,
        attributes_KA=attributes_KA(),
        attribute_names=ATTRIBUTE_NAMES,
        parts_NP3=np.concatenate([np.asarray(source.parts(s)) for s in filled]),
        part_names=PART_NAMES,
        boxes_N4=np.concatenate([np.asarray(source.boxes(s)) for s in filled]),
    )


PAPER, INK, FAINT = (250, 247, 240), (44, 40, 36), (124, 114, 102)

CELL, GAP, CAPTION, MARGIN = 112, 8, 54, 28


def contact_sheet(path: Path, seed: int, pictures: int = 3, across: int = 3) -> None:
    """Write a PNG with some pictures of each of the twelve species, like a field guide's plate.

    Args:
        path: The file to write.
        seed: Seed of the embedded set.
        pictures: Pictures per species.
        across: Species per row.
    """
    block = pictures * (CELL + GAP) + MARGIN
    down = -(-len(SPECIES) // across)
    height = MARGIN + down * (CELL + CAPTION + MARGIN)
    sheet = Image.new("RGB", (MARGIN + across * block, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    name_font, said_font = ImageFont.load_default(17), ImageFont.load_default(13)
    for number, species in enumerate(SPECIES):
        left = MARGIN + number % across * block
        top = MARGIN + number // across * (CELL + CAPTION + MARGIN)
        for which in range(pictures):
            # Each subject has several consecutive pictures: show different subjects.
            index = number + len(SPECIES) * 3 * which
            picture = Image.fromarray(np.asarray(render(seed, "train", index, CELL)[0]))
            sheet.paste(picture, (left + which * (CELL + GAP), top))
        pen.text((left, top + CELL + 6), species.name, fill=INK, font=name_font)
        pen.text((left, top + CELL + 30), species.said, fill=FAINT, font=said_font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
