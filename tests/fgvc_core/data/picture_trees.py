"""Small data sets on disk and in memory, made afresh for a test."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fgvc_core.data.table import ExampleTable

REPOSITORY = Path(__file__).parents[3]


def real_data(name: str) -> Path:
    """A folder of real data, or a skip that says where it was looked for."""
    base = Path(os.environ.get("FIELDMARK_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (base / name).is_dir():
        pytest.skip(f"no real data '{name}' in {base} (set FIELDMARK_DATA)")
    return base / name


def noise(seed: int, height: int = 24, width: int = 30) -> np.ndarray:
    """A picture of random pixels, its own for each seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_picture(path: Path, seed: int, height: int = 24, width: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, height, width)).save(path)


def write_folders(root: Path, names: Sequence[str], each: int = 3) -> None:
    """A tree of class folders."""
    for k, name in enumerate(names):
        for i in range(each):
            write_picture(root / name / f"{i}.png", 100 * k + i)


def write_cub(root: Path, classes: int = 3, each: int = 4, ending: str = "jpg") -> None:
    """A small tree in CUB's published layout; pictures are 30 x 24 pixels."""
    lines: dict[str, list[str]] = {
        name: []
        for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes", "parts")
    }
    image_id = 0
    for k in range(1, classes + 1):
        for i in range(each):
            image_id += 1
            path = f"{k:03d}.Small_Bird_{k}/Bird_{k}_{i}.{ending}"
            write_picture(root / "images" / path, image_id)
            lines["images"].append(f"{image_id} {path}")
            lines["image_class_labels"].append(f"{image_id} {k}")
            lines["train_test_split"].append(f"{image_id} {int(i % 2 == 0)}")
            lines["bounding_boxes"].append(f"{image_id} 3.0 6.0 15.0 12.0")
            lines["parts"] += [f"{image_id} 1 15.0 6.0 1", f"{image_id} 2 0.0 0.0 0"]
    parts = lines.pop("parts")
    for name, content in lines.items():
        (root / f"{name}.txt").write_text("\n".join(content) + "\n")
    (root / "classes.txt").write_text(
        "".join(f"{k} {k:03d}.Small_Bird_{k}\n" for k in range(1, classes + 1))
    )
    (root / "parts").mkdir()
    (root / "parts" / "parts.txt").write_text("1 left wing\n2 tail\n")
    (root / "parts" / "part_locs.txt").write_text("\n".join(parts) + "\n")
    (root / "attributes").mkdir()
    (root / "attributes" / "class_attribute_labels_continuous.txt").write_text(
        "".join(f"{10.0 * k} {100.0 - k}\n" for k in range(1, classes + 1))
    )
    (root / "attributes.txt").write_text("1 has_bill::long\n2 has_tail::red\n")


class ArraySource:
    """Pictures in memory."""

    def __init__(self, pictures: Sequence[np.ndarray]) -> None:
        self.pictures = pictures

    def picture(self, row: int, size: int | None = None) -> np.ndarray:
        return self.pictures[row]

    def content_key(self, row: int) -> bytes:
        return hashlib.sha256(self.pictures[row].tobytes()).digest()


def make_table(labels: Sequence[int], **changes: Any) -> ExampleTable:
    """A table over random pictures with the given labels."""
    count = len(labels)
    ids = tuple(f"picture-{i:04d}" for i in range(count))
    table = ExampleTable(
        source=ArraySource([noise(i) for i in range(count)]),
        rows=np.arange(count, dtype=np.int64),
        ids=ids,
        labels_N=np.array(labels, dtype=np.int64),
        splits=("train",) * count,
        subjects=ids,
        class_names=tuple(f"class {k}" for k in range(max(labels, default=0) + 1)),
    )
    return replace(table, **changes)
