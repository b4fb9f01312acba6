"""Tables from annotation files (COCO, iNaturalist, Label Studio, CVAT): pictures with objects.

An annotation tool gives each picture objects, and each object a label and perhaps a box. A picture
becomes one example if all its objects have one label; with ``data.crop = "box"`` each object with a
box becomes one. What a picture becomes depends on its own entry and file alone.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.files import FileSource, first_few
from fgvc_core.data.labels import LEFT_OUT, NO_CLASS, LeftOut, number_labels
from fgvc_core.data.patients import subjects_or_left_out
from fgvc_core.data.settings import PATIENT, DataSettings
from fgvc_core.data.sheets import plain_path
from fgvc_core.data.table import ExampleTable, Split, held_out_splits
from fgvc_core.data.unused import Reason, Unused
from fgvc_core.errors import DataError
from fgvc_core.words import counted

NO_LABEL = Reason("without an annotation")
SEVERAL = Reason(
    "with annotations of more than one class",
    True,
    "Keep one label a picture; where labels have boxes, --set data.crop=box makes each an example; "
    "or allow the loss with data.max_left_out.",
)
DAMAGED = Reason("in a damaged entry of the annotations", True, "Mend the file.")

_NOWHERE = (float("nan"),) * 4


@dataclass(frozen=True)
class Annotated:
    """One picture of an annotation file.

    Attributes:
        path: Relative to the data root.
        objects: (label, box) of each; a box is fractions, or pixels if a value is above 1.
        subject: Whom it shows; empty: the picture itself.
        split: Its split; None: decided by a hash.
        columns: Further values by column.
    """

    path: str
    objects: Sequence[tuple[str, tuple[float, ...] | None]]
    subject: str = ""
    split: Split | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Record:
    """What is not used, for the check and for a site's record."""

    left_out: LeftOut | None
    unused: Unused = field(default_factory=Unused)
    lost_labels: set[str] = field(default_factory=set)

    def aside(self, reason: Reason, name: str) -> None:
        """Record a picture that is not used."""
        self.unused.add(reason, name)
        if self.left_out is not None:
            self.left_out.add(reason.words, name)


def where(root: Path, name: str, folders: Sequence[str]) -> str:
    """Path of a picture that a file names: below the first of the folders that holds it.

    Args:
        root: The data root.
        name: Path as the file writes it.
        folders: Folders relative to the root, "" for the root itself.
    """
    plain = plain_path(name, root)
    for folder in folders:
        path = f"{folder}/{plain}" if folder else plain
        if os.path.isfile(os.path.join(root, path)):
            return path
    return plain


def table_of(
    pictures: Iterable[Annotated],
    settings: DataSettings,
    root: Path,
    record: Record,
    named: str,
    how: str,
) -> ExampleTable:
    """The table of annotated pictures.

    Args:
        pictures: In the file's order.
        settings: ``[data]``.
        root: The data root.
        record: What is not used is added to it.
        named: What the annotation file is called, for messages.
        how: See :class:`~fgvc_core.data.table.ExampleTable`.

    Raises:
        DataError: if no picture has a label, a label is no class, or a picture is in two splits or
            has two entries.
    """
    pictures = list(pictures)
    if record.left_out is None:
        _refuse_twice(pictures, named)
    rows = _rows(pictures, record, by_box=settings.crop == "box" and settings.boxes is None)
    rows = _in_one_split(rows, record, named)
    paths = tuple(one.path for one, _, _ in rows)
    labels = [label for _, label, _ in rows]
    labels_N, class_names = number_labels(labels, settings, named, record.left_out, paths)
    subjects = [one.subject or one.path for one, _, _ in rows]
    if settings.subject_column == PATIENT:
        subjects, bare = subjects_or_left_out(root, paths, record.left_out)
        labels_N[sorted(bare)] = LEFT_OUT
    record.unused.classes = _lost_classes(record, labels_N, class_names, settings)
    boxes = [box for _, _, box in rows]
    names = sorted({name for one, _, _ in rows for name in one.columns})
    return ExampleTable(
        source=FileSource(root, paths),
        rows=np.arange(len(paths), dtype=np.int64),
        ids=paths,
        labels_N=labels_N,
        splits=_splits([one.split for one, _, _ in rows], subjects, labels, settings),
        subjects=tuple(subjects),
        class_names=class_names,
        columns={name: tuple(one.columns.get(name, "") for one, _, _ in rows) for name in names},
        boxes_N4=np.array(boxes, dtype=np.float32) if any(b != _NOWHERE for b in boxes) else None,
        unused=record.unused,
        how=how,
    )


_Row = tuple[Annotated, str, tuple[float, ...]]


def _rows(pictures: Iterable[Annotated], record: Record, *, by_box: bool) -> list[_Row]:
    rows: list[_Row] = []
    for one in pictures:
        if not one.objects:
            record.aside(NO_LABEL, one.path)
        elif by_box:
            rows += [(one, label, box or _NOWHERE) for label, box in one.objects]
        elif len({label for label, _ in one.objects}) > 1:
            record.aside(SEVERAL, one.path)
            record.lost_labels.update(label for label, _ in one.objects)
        else:
            rows.append((one, one.objects[0][0], _NOWHERE))
    return rows


def _lost_classes(
    record: Record,
    labels_N: NDArray[np.int64],
    class_names: Sequence[str],
    settings: DataSettings,
) -> list[str]:
    """Classes of which nothing is used, though some picture has their label."""
    mapped = {settings.label_map.get(label, label) for label in record.lost_labels}
    held = {class_names[k] for k in set(labels_N.tolist()) if k >= 0}
    known = mapped if settings.classes is None else set(settings.classes)
    return sorted((mapped & known) - {*held, NO_CLASS})


def _refuse_twice(pictures: Sequence[Annotated], named: str) -> None:
    """Refuse pictures with several entries, each of which may give another label."""
    counts = Counter((one.path, one.split) for one in pictures)
    twice = sorted({path for (path, _), count in counts.items() if count > 1})
    if twice:
        raise DataError(
            f"{named} lists {counted(len(twice), 'picture')} twice: {first_few(twice)}.",
            why="One picture would count as two, perhaps with two labels.",
            remedy="Keep one entry a picture, with all its annotations.",
        )


def _in_one_split(rows: list[_Row], record: Record, named: str) -> list[_Row]:
    """The rows, none of whose pictures is in two splits."""
    sides = {(one.path, one.split) for one, _, _ in rows}
    counts = Counter(path for path, _ in sides)
    torn = {path for path, count in counts.items() if count > 1}
    if torn and record.left_out is None:
        raise DataError(
            f"{named}: {counted(len(torn), 'picture is', 'pictures are')} in two splits: "
            f"{first_few(sorted(torn))}.",
            why="A model would be tested on what it has learned.",
            remedy="List each picture once, or name one file with data.manifest.",
        )
    for path in sorted(torn):
        record.aside(Reason("in two splits", True), path)
    return [row for row in rows if row[0].path not in torn]


def _splits(
    stated: Sequence[Split | None],
    subjects: Sequence[str],
    labels: Sequence[str],
    settings: DataSettings,
) -> tuple[Split, ...]:
    undecided = [at for at, split in enumerate(stated) if split is None]
    made = held_out_splits(
        [subjects[at] for at in undecided],
        [labels[at] for at in undecided],
        settings.test_fraction,
        settings.test_rule,
    )
    held = dict(zip(undecided, made, strict=True))
    return tuple(split or held[at] for at, split in enumerate(stated))


def fraction(
    box: tuple[float, ...] | None, size: tuple[object, object]
) -> tuple[float, ...] | None:
    """A box in pixels as fractions, where the file says how large the picture is."""
    width, height = size
    if box is None or not isinstance(width, int | float) or not isinstance(height, int | float):
        return box
    if width <= 0 or height <= 0:
        return box
    return (box[0] / width, box[1] / height, box[2] / width, box[3] / height)


def objects(values: object) -> list[dict[str, Any]]:
    """The objects of a JSON list; other values are left out."""
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []
