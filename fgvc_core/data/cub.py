"""Data set ``cub``: CUB-200-2011 in its published layout, or a subset of its classes.

Wah, Branson, Welinder, Perona, Belongie: The Caltech-UCSD Birds-200-2011 Dataset,
2011, https://www.vision.caltech.edu/datasets/cub_200_2011/. Boxes and parts are in pixels
of the published pictures. A tree of downsized pictures needs ``original_sizes.csv``
(columns image_id, orig_w, orig_h) to scale them.
"""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.catalogue import data_root, tolerant_dataset
from fgvc_core.data.cub_files import (
    align,
    damaged,
    number_in,
    read_names,
    read_numbers,
    readable_lines,
    readable_pairs,
)
from fgvc_core.data.files import FileSource, first_few
from fgvc_core.data.labels import LEFT_OUT, LeftOut, number_labels
from fgvc_core.data.reader import turned
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.soundness import refuse_unsound_list
from fgvc_core.data.table import ExampleTable
from fgvc_core.words import counted

_LABELS = "image_class_labels.txt"
_SPLIT = "train_test_split.txt"
_BOXES = "bounding_boxes.txt"
_PARTS = "parts/part_locs.txt"
_SIZES = "original_sizes.csv"
_ATTRIBUTES = "attributes/class_attribute_labels_continuous.txt"
# The published archive keeps this file next to the tree; copies keep it inside.
_ATTRIBUTE_NAMES = ("attributes.txt", "attributes/attributes.txt", "../attributes.txt")


@tolerant_dataset("cub", knows=("attributes",))
def build_table(
    settings: DataSettings, cache: Path, left_out: LeftOut | None = None
) -> ExampleTable:
    """Build the table of a CUB tree.

    Class names lose their number and underscores: ``001.Black_footed_Albatross`` becomes
    ``Black footed Albatross``. Boxes, parts and attributes are None if their files are
    missing; if a picture's size is unknown, its box is NaN and its parts are hidden.
    Attributes are fractions (published as percentages); a class that ``label_map`` merges
    from several gets their mean.

    Args:
        settings: ``[data]``; ``path`` is the folder that holds ``images.txt``.
        cache: Not used.
        left_out: If given, faulty rows are recorded here and left out. Boxes and parts, which
            training does not use, are then not read.

    Raises:
        ConfigurationError: if no path is given.
        DataError: for a missing or damaged file, a picture listed twice, a class number
            missing from ``classes.txt``, or a picture without label or split.
    """
    root = data_root(settings)
    birds = {k: _pretty(name) for k, name in sorted(read_names(root, "classes.txt").items())}
    if left_out is not None:
        return _tolerant_table(root, settings, birds, left_out)
    listed = read_names(root, "images.txt")
    image_ids, paths = list(listed), tuple(listed.values())
    _refuse_twice(paths)
    own = _own_labels(root, image_ids, paths, birds)
    if settings.classes is None:
        mapped = (settings.label_map.get(bird, bird) for bird in birds.values())
        settings = settings.model_copy(update={"classes": tuple(dict.fromkeys(mapped))})
    labels_N, class_names = number_labels(own, settings, _LABELS)
    in_train_N = align(read_numbers(root, _SPLIT, 2), image_ids, _SPLIT)[:, 0]
    source = FileSource(root / "images", paths)
    sizes_N2 = _sizes(root, image_ids, source)
    parts_NP3, part_names = _parts(root, image_ids, sizes_N2, source)
    attributes_KA, attribute_names = _attributes(root, birds, settings, class_names)
    return ExampleTable(
        source=source,
        rows=np.arange(len(paths), dtype=np.int64),
        ids=paths,
        labels_N=labels_N,
        splits=tuple("train" if flag else "test" for flag in in_train_N),
        subjects=paths,
        class_names=class_names,
        attributes_KA=attributes_KA,
        attribute_names=attribute_names,
        parts_NP3=parts_NP3,
        part_names=part_names,
        boxes_N4=_boxes(root, image_ids, sizes_N2, source),
    )


def _tolerant_table(
    root: Path, settings: DataSettings, birds: Mapping[int, str], left_out: LeftOut
) -> ExampleTable:
    """Build the table; record every fault of a single picture and mark its row as left out."""
    # Two pictures with one number stay two rows, so that neither affects whether the other is read.
    listed = readable_pairs(root, "images.txt", left_out)
    numbers, flags = (readable_lines(root, name, left_out) for name in (_LABELS, _SPLIT))
    paths = tuple(path for _, path in listed)
    own: list[str | None] = []
    faulty = []
    for position, (image_id, path) in enumerate(listed):
        number, flag = number_in(numbers.get(image_id, "")), flags.get(image_id, "")
        bird = None if number is None else birds.get(number)
        if bird is None or flag not in ("0", "1"):
            faulty.append(position)
            left_out.add("without a class" if bird is None else "without a split", path)
        own.append(None if position in faulty[-1:] else bird)
    if settings.classes is None:
        mapped = (settings.label_map.get(bird, bird) for bird in birds.values())
        settings = settings.model_copy(update={"classes": tuple(dict.fromkeys(mapped))})
    labels_N, class_names = number_labels(own, settings, _LABELS, left_out, paths)
    labels_N[faulty] = LEFT_OUT
    attributes_KA, attribute_names = _attributes(root, birds, settings, class_names)
    return ExampleTable(
        source=FileSource(root / "images", paths),
        rows=np.arange(len(paths), dtype=np.int64),
        ids=paths,
        labels_N=labels_N,
        splits=tuple("train" if flags.get(i) == "1" else "test" for i, _ in listed),
        subjects=paths,
        class_names=class_names,
        attributes_KA=attributes_KA,
        attribute_names=attribute_names,
    )


def _pretty(name: str) -> str:
    return re.sub(r"^\d+\.", "", name).replace("_", " ")


def _refuse_twice(paths: Sequence[str]) -> None:
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise damaged(
            f"images.txt lists {counted(len(twice), 'picture')} twice: {first_few(twice)}."
        )


def _own_labels(
    root: Path, image_ids: Sequence[int], paths: Sequence[str], birds: Mapping[int, str]
) -> list[str]:
    class_ids = align(read_numbers(root, _LABELS, 2), image_ids, _LABELS)[:, 0].tolist()
    strange = [paths[i] for i, k in enumerate(class_ids) if k not in birds]
    if strange:
        raise damaged(
            f"{_LABELS}: {len(strange)} of {len(paths)} labels are out of range: "
            f"{first_few(strange)}.",
            f"classes.txt has {len(birds)} classes, numbered {min(birds)} to {max(birds)}.",
        )
    return [birds[int(k)] for k in class_ids]


def _sizes(root: Path, image_ids: Sequence[int], source: FileSource) -> NDArray[np.float64] | None:
    """Width and height that boxes and parts refer to, (N, 2), NaN if unknown."""
    if not (root / _BOXES).is_file() and not (root / _PARTS).is_file():
        return None
    if not (root / _SIZES).is_file():
        unknown = (float("nan"), float("nan"))
        return np.array([source.pixel_size(row) or unknown for row in range(len(source))])
    refuse_unsound_list(root, root / _SIZES)
    with (root / _SIZES).open(encoding="utf-8", newline="") as file:
        try:
            known = {
                int(line["image_id"]): (float(line["orig_w"]), float(line["orig_h"]))
                for line in csv.DictReader(file)
            }
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise damaged(f"{_SIZES} lacks image_id, orig_w or orig_h: {error!r}.") from None
    absent = [i for i in image_ids if i not in known]
    if absent:
        raise damaged(f"{_SIZES} has no line for {len(absent)} images: {first_few(absent)}.")
    return np.array([known[i] for i in image_ids])


def _boxes(
    root: Path,
    image_ids: Sequence[int],
    sizes_N2: NDArray[np.float64] | None,
    source: FileSource,
) -> NDArray[np.float32] | None:
    if sizes_N2 is None or not (root / _BOXES).is_file():
        return None
    boxes_N4 = align(read_numbers(root, _BOXES, 5), image_ids, _BOXES)
    # Some published boxes extend a few pixels beyond the picture.
    low_N2 = np.clip(boxes_N4[:, :2] / sizes_N2, 0.0, 1.0)
    high_N2 = np.clip((boxes_N4[:, :2] + boxes_N4[:, 2:]) / sizes_N2, 0.0, 1.0)
    return source.upright_boxes(np.hstack([low_N2, high_N2 - low_N2]))


def _parts(
    root: Path,
    image_ids: Sequence[int],
    sizes_N2: NDArray[np.float64] | None,
    source: FileSource,
) -> tuple[NDArray[np.float32] | None, tuple[str, ...]]:
    if sizes_N2 is None or not (root / _PARTS).is_file():
        return None, ()
    names = read_names(root, "parts/parts.txt")
    column = {part_id: p for p, part_id in enumerate(names)}
    row = {image_id: n for n, image_id in enumerate(image_ids)}
    lines_L5 = read_numbers(root, _PARTS, 5)
    lines_L5 = lines_L5[np.isin(lines_L5[:, 0], image_ids)]
    strange = sorted(set(lines_L5[:, 1].tolist()) - set(column))
    if strange:
        raise damaged(f"{_PARTS} names parts that parts.txt does not have: {first_few(strange)}.")
    parts_NP3 = np.zeros((len(image_ids), len(names), 3), dtype=np.float32)
    rows_L = np.array([row[int(i)] for i in lines_L5[:, 0]], dtype=np.int64)
    columns_L = np.array([column[int(p)] for p in lines_L5[:, 1]], dtype=np.int64)
    places_L2 = lines_L5[:, 2:4] / sizes_N2[rows_L]
    visible_L = (lines_L5[:, 4] > 0) & np.isfinite(places_L2).all(axis=1)
    places_L2 = np.where(visible_L[:, None], np.clip(places_L2, 0.0, 1.0), 0.0)
    parts_NP3[rows_L, columns_L] = np.column_stack([places_L2, visible_L])
    for at, orientation in source.orientations().items():
        shown_P = parts_NP3[at, :, 2] > 0
        parts_NP3[at, shown_P, :2] = turned(parts_NP3[at, shown_P, :2], orientation)
    return parts_NP3, tuple(names.values())


def _attributes(
    root: Path, birds: Mapping[int, str], settings: DataSettings, class_names: Sequence[str]
) -> tuple[NDArray[np.float32] | None, tuple[str, ...]]:
    if not (root / _ATTRIBUTES).is_file():
        return None, ()
    values_BA = read_numbers(root, _ATTRIBUTES) / 100.0
    # A subset has one line for each class it kept, or still the lines of all classes.
    if len(values_BA) == len(birds):
        line_of = {bird: line for line, bird in enumerate(birds.values())}
    elif len(values_BA) >= max(birds):
        line_of = {bird: class_id - 1 for class_id, bird in birds.items()}
    else:
        raise damaged(f"{_ATTRIBUTES} has {len(values_BA)} lines for {len(birds)} classes.")
    lines: dict[str, list[int]] = {name: [] for name in class_names}
    for bird, line in line_of.items():
        lines.setdefault(settings.label_map.get(bird, bird), []).append(line)
    if not all(lines[name] for name in class_names):
        return None, ()
    means = [values_BA[lines[name]].mean(axis=0) for name in class_names]
    found = next((name for name in _ATTRIBUTE_NAMES if (root / name).is_file()), None)
    names = tuple(read_names(root, found).values()) if found else ()
    if len(names) != values_BA.shape[1]:
        names = tuple(f"attribute {a + 1}" for a in range(values_BA.shape[1]))
    return np.array(means, dtype=np.float32), names
