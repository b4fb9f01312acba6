"""Data set ``manifest``: a CSV of pictures with labels and further columns."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.boxes import has_box_columns
from fgvc_core.data.catalogue import data_root, tolerant_dataset
from fgvc_core.data.csv_sheet import Sheet, read_line_by_line, read_sheet
from fgvc_core.data.files import FileSource, first_few
from fgvc_core.data.labels import LEFT_OUT, NO_LABEL, LeftOut, number_labels
from fgvc_core.data.layout import usual_split
from fgvc_core.data.patients import (
    WITHOUT,
    patients,
    shown_subjects,
    subjects_or_left_out,
)
from fgvc_core.data.settings import PATIENT, DataSettings
from fgvc_core.data.sheets import plain_path
from fgvc_core.data.table import SPLITS, ExampleTable, Split, held_out_splits
from fgvc_core.errors import DataError, nearest
from fgvc_core.words import counted

_SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "train",
    "valid": "train",
    "validation": "train",
    "test": "test",
    "testing": "test",
    "pool": "pool",
    "unlabelled": "pool",
    "unlabeled": "pool",
}


@tolerant_dataset("manifest")
def build_table(
    settings: DataSettings, cache: Path, left_out: LeftOut | None = None
) -> ExampleTable:
    """Build the table of a CSV with a header line (UTF-8; the separator is told from the header).

    ``data.path_column`` (through ``data.path_template``) gives each picture's path
    relative to ``data.path``, ``data.label_column`` its label. A subject column groups
    pictures that must stay together. A split column contains train (also: val), test or
    pool; without one ``data.test_fraction`` of each class's subjects is held out. Only
    the pool may have empty labels. All columns except path and label are kept in
    ``columns``, as text.

    Args:
        settings: ``[data]``.
        cache: Not used.
        left_out: If given, faulty lines are recorded here and left out. Each line of the file
            is then parsed separately, so that an open quote damages only its own line; a
            picture listed twice, or a subject in two splits, is not a fault.

    Raises:
        ConfigurationError: if no path is given.
        DataError: for a missing file or column (naming the nearest), a damaged line, a
            picture listed twice, an empty subject, an unknown split or label, or a
            subject in two splits.
    """
    root = data_root(settings)
    if left_out is not None:
        return _tolerant_table(root, settings, left_out)
    sheet = read_sheet(root, root / settings.manifest, settings.manifest).only(settings)
    raw_paths = sheet.filled(settings.path_column, "data.path_column")
    raw_labels = sheet.column(settings.label_column, "data.label_column")
    subject_column = _subject_column(settings, sheet)
    split_column = sheet.chosen(settings.split_column, "split", "data.split_column")
    paths = _paths(root, settings, raw_paths)
    if not (settings.crop == "box" and has_box_columns(list(sheet.values))):
        # With boxes, each line is one subject of its picture.
        _refuse_twice(paths, sheet)
    if subject_column == PATIENT:
        subjects = tuple(subjects_or_left_out(root, paths, None)[0])
    elif subject_column:
        subjects = tuple(sheet.filled(subject_column, "data.subject_column"))
    else:
        subjects = paths
    splits = (
        _splits(sheet, split_column)
        if split_column
        else held_out_splits(subjects, raw_labels, settings.test_fraction, settings.test_rule)
    )
    _refuse_parted_subjects(subjects, splits, sheet, paths)
    _refuse_unlabelled(raw_labels, splits, sheet)
    labels_N, class_names = number_labels(
        [None if split == "pool" else raw_labels[i] for i, split in enumerate(splits)],
        settings,
        sheet.name,
    )
    return _table(root, settings, sheet, paths, labels_N, splits, subjects, class_names)


def _subject_column(settings: DataSettings, sheet: Sheet) -> str | None:
    if settings.subject_column == PATIENT and PATIENT not in sheet.values:
        return PATIENT
    return sheet.chosen(settings.subject_column, "subject", "data.subject_column")


def _paths(root: Path, settings: DataSettings, values: Sequence[str]) -> tuple[str, ...]:
    """Paths relative to the root, each in one spelling."""
    made = (settings.path_template.replace("{path}", plain_path(v, root)) for v in values)
    return tuple(plain_path(path, root) for path in made)


def _table(
    root: Path,
    settings: DataSettings,
    sheet: Sheet,
    paths: tuple[str, ...],
    labels_N: NDArray[np.int64],
    splits: tuple[Split, ...],
    subjects: tuple[str, ...],
    class_names: tuple[str, ...],
) -> ExampleTable:
    own = {settings.path_column, settings.label_column}
    return ExampleTable(
        source=FileSource(root, paths),
        rows=np.arange(len(paths), dtype=np.int64),
        ids=paths,
        labels_N=labels_N,
        splits=splits,
        subjects=subjects,
        class_names=class_names,
        columns={n: tuple(values) for n, values in sheet.values.items() if n not in own},
    )


def _tolerant_table(root: Path, settings: DataSettings, left_out: LeftOut) -> ExampleTable:
    """Build the table; record every fault of a single line and mark its row as left out."""
    sheet = read_line_by_line(root, root / settings.manifest, settings.manifest, left_out)
    sheet = sheet.only(settings)
    raw_paths = sheet.column(settings.path_column, "data.path_column")
    raw_labels = sheet.column(settings.label_column, "data.label_column")
    subject_column = _subject_column(settings, sheet)
    split_column = sheet.chosen(settings.split_column, "split", "data.split_column")
    paths = _paths(root, settings, raw_paths)
    if subject_column == PATIENT:
        subjects = tuple(patients(root, paths))
    else:
        subjects = tuple(sheet.column(subject_column, "")) if subject_column else paths
    if split_column:
        words = [_split(word) or "" for word in sheet.column(split_column, "")]
    else:
        words = list(
            held_out_splits(subjects, raw_labels, settings.test_fraction, settings.test_rule)
        )
    # Names of rows in the record include the line number, because a path may be empty.
    names = [f"line {line} ({path})" for line, path in zip(sheet.lines, raw_paths, strict=True)]
    faulty: set[int] = set()

    def mark(position: int, reason: str) -> None:
        if position not in faulty:
            faulty.add(position)
            left_out.add(reason, names[position])

    for position, word in enumerate(words):
        if not raw_paths[position]:
            mark(position, "without a path")
        elif not subjects[position]:
            mark(position, WITHOUT if subject_column == PATIENT else "without a subject")
        elif word not in _SPLIT_WORDS:
            mark(position, "in an unknown split")
        elif not raw_labels[position] and _SPLIT_WORDS[word] != "pool":
            mark(position, NO_LABEL)
    splits = tuple(_SPLIT_WORDS.get(word, "pool") for word in words)
    labels_N, class_names = number_labels(
        [
            None if i in faulty or split == "pool" else raw_labels[i]
            for i, split in enumerate(splits)
        ],
        settings,
        sheet.name,
        left_out,
        names,
    )
    labels_N[sorted(faulty)] = LEFT_OUT
    return _table(root, settings, sheet, paths, labels_N, splits, subjects, class_names)


def _refuse_twice(paths: Sequence[str], sheet: Sheet) -> None:
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise DataError(
            f"{sheet.name} lists {counted(len(twice), 'picture')} twice: {first_few(twice)}.",
            why="One picture could land in two splits, or with two labels.",
            remedy="Keep one line a picture.",
        )


def _splits(sheet: Sheet, column: str) -> tuple[Split, ...]:
    words = sheet.filled(column, "data.split_column")
    strange = sorted({word for word in words if _split(word) is None})
    if strange:
        raise DataError(
            f"{sheet.name}: column '{column}' holds unknown splits: {first_few(strange)}.",
            why=f"A picture is one of {', '.join(SPLITS)} (val counts as train).",
            remedy=nearest(strange[0].lower(), _SPLIT_WORDS, 1) or "Mend data.split_column.",
        )
    return tuple(_split(word) or "pool" for word in words)


def _split(word: str) -> Split | None:
    """The split that a word means, in any of its usual spellings."""
    kind = usual_split(word)
    return _SPLIT_WORDS.get(word.lower()) or (None if kind is None else _SPLIT_WORDS[kind])


def _refuse_parted_subjects(
    subjects: Sequence[str], splits: Sequence[Split], sheet: Sheet, paths: Sequence[str]
) -> None:
    pairs = set(zip(subjects, splits, strict=True))
    counts = Counter(subject for subject, _ in pairs)
    parted = shown_subjects([s for s, count in counts.items() if count > 1], subjects, paths)
    if parted:
        raise DataError(
            f"{sheet.name}: {counted(len(parted), 'subject is', 'subjects are')} in more than one "
            f"split: {first_few(parted)}.",
            why="Pictures of one subject on both sides make scores look better than they are.",
            remedy="Give all pictures of a subject one split.",
        )


def _refuse_unlabelled(raw_labels: Sequence[str], splits: Sequence[Split], sheet: Sheet) -> None:
    empty = [
        sheet.lines[i] for i, label in enumerate(raw_labels) if not label and splits[i] != "pool"
    ]
    if empty:
        raise DataError(
            f"{sheet.name} has no label in {counted(len(empty), 'line')}: {first_few(empty)}.",
            why="Only pictures of the pool go without.",
            remedy="Fill the labels in, or mark the pictures as 'pool' in a split column.",
        )
