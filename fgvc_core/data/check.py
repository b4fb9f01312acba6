"""Check of a data set before training: its kind, its contents, and its faults."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fgvc_core.data.decoding import Tell, decode_each
from fgvc_core.data.files import FileSource, first_few
from fgvc_core.data.frames import count_further_frames
from fgvc_core.data.guessing import where_they_are
from fgvc_core.data.patients import shown_subjects
from fgvc_core.data.recognising import recognise as recognise
from fgvc_core.data.table import SPLITS, UNLABELLED, ExampleTable, Split
from fgvc_core.data.unused import Unused
from fgvc_core.errors import DataError
from fgvc_core.words import counted, visible

TINY = 5
"""A class with fewer training examples than this is noted as tiny."""

FEW_TEST = 10
"""A class with fewer test examples than this is noted: one picture moves its recall by more than 10
points."""

UNEQUAL = 10
"""A ratio of the largest to the smallest class, in training examples, that is noted."""

_SHORT_SIDE = 16

_ONE = {"is": "is", "has": "has"}
_MANY = {"is": "are", "has": "have"}

_TWO_LABELS = ("picture is byte-equal and has", "pictures are byte-equal and have")

SITE_COLUMNS = (
    "camera", "center", "centre", "clinic", "device", "hospital", "institution", "location", "site",
    "station",
)  # fmt: skip


@dataclass(frozen=True)
class CheckReport:
    """Result of :func:`check_table`.

    Attributes:
        examples: Number of examples.
        subjects: Number of subjects.
        splits: Split -> number of examples.
        classes: Class name -> split -> number of labeled examples.
        missing: Ids of examples whose picture file does not exist.
        unreadable: Id -> why the picture cannot be decoded.
        out_of_range: Ids of examples whose label is not a class.
        unlabelled: Ids of examples outside the pool without a label.
        parted_subjects: Subjects with pictures in more than one split.
        shared_pictures: Pairs of ids of byte-equal pictures in different splits.
        two_labels: Pairs of ids of byte-equal pictures with different labels.
        repeated: Pairs of ids of byte-equal pictures in one split with one label.
        tiny_classes: Names of classes with fewer than ``TINY`` training examples.
        untrained: Names of classes without a training picture, which no run can learn.
        alike: Pairs of class names that differ only in case or blanks.
        alike_subjects: Pairs of subjects that differ only in case or as numbers ("1" and "01").
        alike_sites: Pairs of names of sites that differ only so, each with its column.
        unused: What lies below the data root and is not used.
        max_left_out: Share of the pictures that may be lost.
        how: How the files were understood; may be empty.
        guess: Where missing pictures seem to be; may be empty.
        beside: For one class: which table beside it may hold the labels; may be empty.
    """

    examples: int
    subjects: int
    splits: Mapping[Split, int]
    classes: Mapping[str, Mapping[Split, int]]
    missing: tuple[str, ...]
    unreadable: Mapping[str, str]
    out_of_range: tuple[str, ...]
    unlabelled: tuple[str, ...]
    parted_subjects: tuple[str, ...]
    shared_pictures: tuple[tuple[str, str], ...]
    two_labels: tuple[tuple[str, str], ...]
    repeated: tuple[tuple[str, str], ...]
    tiny_classes: tuple[str, ...]
    untrained: tuple[str, ...] = ()
    alike: tuple[tuple[str, str], ...] = ()
    alike_subjects: tuple[tuple[str, str], ...] = ()
    alike_sites: tuple[tuple[str, str, str], ...] = ()
    unused: Unused = field(default_factory=Unused)
    max_left_out: float = 0.01
    how: str = ""
    guess: str = ""
    beside: str = ""

    def faults(self) -> list[str]:
        """One sentence for each kind of fault that makes the data unusable."""
        sentences = []
        for names, what in (
            (self.missing, "pictures {is} missing"),
            (tuple(self.unreadable), "pictures cannot be read"),
            (self.out_of_range, "labels {is} out of range"),
            (self.unlabelled, "pictures outside the pool {has} no label"),
        ):
            if names:
                told = what.format(**(_ONE if len(names) == 1 else _MANY))
                sentences.append(f"{len(names)} of {self.examples} {told}: {first_few(names)}.")
        sentences += self.unused.faults(self.examples, self.max_left_out)
        if self.untrained:
            sentences.append(
                f"{counted(len(self.untrained), 'class has', 'classes have')} no training picture: "
                f"{first_few(self.untrained)}. A class without one cannot be learned: take it out "
                "of data.classes (or map it in data.label_map to '-> none'), or add pictures."
            )
        if self.missing and self.guess:
            sentences[0] += f" {self.guess}"
        if self.unreadable:
            sentences.append(f"The first of those: {next(iter(self.unreadable.values()))}")
        if self.two_labels:
            pairs = [" = ".join(pair) for pair in self.two_labels]
            sentences.append(f"{counted(len(pairs), *_TWO_LABELS)} two labels: {first_few(pairs)}.")
        if self.parted_subjects:
            sentences.append(
                f"{counted(len(self.parted_subjects), 'subject is', 'subjects are')} in more than "
                f"one split: {first_few(self.parted_subjects)}."
            )
        return sentences

    def notes(self) -> list[str]:
        """One sentence for each finding that is allowed but worth knowing."""
        sentences = []
        if self.shared_pictures:
            pairs = [" = ".join(pair) for pair in self.shared_pictures]
            sentences.append(
                f"{counted(len(pairs), 'picture is', 'pictures are')} byte-equal across splits, "
                f"which flatters the score: {first_few(pairs)}."
            )
        if self.repeated:
            pairs = [" = ".join(pair) for pair in self.repeated]
            sentences.append(
                f"{counted(len(pairs), 'picture is', 'pictures are')} byte-equal within a split: "
                f"{first_few(pairs)}."
            )
        if self.alike:
            pairs = ["' and '".join(pair) for pair in self.alike]
            sentences.append(
                f"{counted(len(pairs), 'pair of classes differs', 'pairs of classes differ')} only "
                f"in case, blanks or hidden characters: {first_few(pairs)}. "
                "Map one to the other in data.label_map if they are one."
            )
        if self.alike_subjects:
            pairs = ["' and '".join(pair) for pair in self.alike_subjects]
            sentences.append(
                f"{counted(len(pairs), 'pair of subjects looks', 'pairs of subjects look')} alike: "
                f"{first_few(pairs)}. If they are one, write them alike: else pictures of one "
                "subject may lie on both sides of a split."
            )
        for column in dict.fromkeys(column for column, _, _ in self.alike_sites):
            pairs = [f"{one}' and '{two}" for name, one, two in self.alike_sites if name == column]
            sentences.append(
                f"{counted(len(pairs), 'pair of names looks', 'pairs of names look')} alike in "
                f"column '{visible(column)}': {first_few(pairs)}. Each name is a site of its own: "
                "write them alike if they are one."
            )
        if len(self.classes) == 1:
            sentences.append(
                f"{only_class(next(iter(self.classes)))} A simulation refuses such data; a site "
                f"may hold one class of several. {self.beside}".strip()
            )
        largest, smallest = self._extremes()
        if largest and largest[1] > UNEQUAL * smallest[1]:
            sentences.append(
                f"The classes are unequal: '{largest[0]}' has {largest[1]:,} training examples, "
                f"'{smallest[0]}' has {smallest[1]:,}."
            )
        if self.tiny_classes:
            sentences.append(
                f"{counted(len(self.tiny_classes), 'class has', 'classes have')} fewer than {TINY} "
                f"training examples: {first_few(self.tiny_classes)}."
            )
        few = [name for name, counts in self.classes.items() if counts["test"] < FEW_TEST]
        if few and self.splits["test"]:
            sentences.append(
                f"{counted(len(few), 'class has', 'classes have')} fewer than {FEW_TEST} test "
                "examples, so that one picture moves its recall by more than "
                f"{100 / FEW_TEST:g} points: {first_few(few)}."
            )
        return sentences

    def _extremes(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Name and number of training examples of the largest and the smallest class."""
        counts = {name: splits["train"] for name, splits in self.classes.items()}
        largest, smallest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        return (largest, counts[largest]), (smallest, counts[smallest])

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values, with ``faults`` and ``notes`` as sentences."""
        return {
            "examples": self.examples,
            "subjects": self.subjects,
            "splits": dict(self.splits),
            "classes": {name: dict(counts) for name, counts in self.classes.items()},
            "missing": list(self.missing),
            "unreadable": dict(self.unreadable),
            "out_of_range": list(self.out_of_range),
            "unlabelled": list(self.unlabelled),
            "parted_subjects": list(self.parted_subjects),
            "shared_pictures": [list(pair) for pair in self.shared_pictures],
            "two_labels": [list(pair) for pair in self.two_labels],
            "repeated": [list(pair) for pair in self.repeated],
            "tiny_classes": list(self.tiny_classes),
            "untrained": list(self.untrained),
            "alike": [list(pair) for pair in self.alike],
            "alike_subjects": [list(pair) for pair in self.alike_subjects],
            "alike_sites": [list(pair) for pair in self.alike_sites],
            "unused": self.unused.as_json(),
            "how": self.how,
            "faults": self.faults(),
            "notes": self.notes(),
        }


def check_table(
    table: ExampleTable, tell: Tell | None = None, max_left_out: float = 0.01
) -> CheckReport:
    """Check every example's label and subject, and decode its whole picture.

    Args:
        table: A table from ``load_table(..., require_pictures=False)``.
        tell: Called with (pictures done, total).
        max_left_out: Share of the pictures that may be lost.
    """
    missing = _missing(table)
    count_further_frames(table)
    present = table.take([i for i in range(len(table)) if i not in missing])
    damaged = decode_each(present, _SHORT_SIDE, lambda _position, _picture: None, tell)
    whole = present.take([i for i in range(len(present)) if i not in damaged])
    in_range_N = (table.labels_N >= -1) & (table.labels_N < table.num_classes)
    classes = {name: dict.fromkeys(SPLITS, 0) for name in table.class_names}
    for label, split in zip(table.labels_N.tolist(), table.splits, strict=True):
        if 0 <= label < table.num_classes:
            classes[table.class_names[label]][split] += 1
    shared, two_labels, repeated = _equal_pictures(whole)
    return CheckReport(
        examples=len(table),
        subjects=len(set(table.subjects)),
        splits={split: table.splits.count(split) for split in SPLITS},
        classes=classes,
        missing=tuple(table.ids[i] for i in missing),
        unreadable={present.ids[i]: error.what for i, error in damaged.items()},
        out_of_range=tuple(table.ids[i] for i in np.flatnonzero(~in_range_N)),
        unlabelled=tuple(table.unlabelled()),
        parted_subjects=_parted(table),
        shared_pictures=shared,
        two_labels=two_labels,
        repeated=repeated,
        tiny_classes=tuple(name for name, counts in classes.items() if counts["train"] < TINY),
        untrained=tuple(name for name, counts in classes.items() if not counts["train"]),
        alike=_alike(table.class_names),
        alike_subjects=_alike_subjects(table),
        alike_sites=_alike_sites(table),
        unused=table.unused,
        max_left_out=max_left_out,
        how=table.how,
        guess=_guess(table, missing),
        beside=_tables_beside(table) if table.num_classes == 1 else "",
    )


def _alike(names: Sequence[str], *, numbers: bool = False) -> tuple[tuple[str, str], ...]:
    """Pairs of names that look alike; with ``numbers`` also those of one number."""
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        # Without what does not show, such as a zero-width space.
        shown = "".join(c for c in name if unicodedata.category(c) != "Cf")
        key = " ".join(unicodedata.normalize("NFKC", shown).casefold().split())
        if numbers:
            key = _as_number(key)
        if first.setdefault(key, name) != name:
            pairs.append((first[key], name))
    return tuple(pairs)


def _as_number(text: str) -> str:
    """A number in one spelling, as a spreadsheet may change it; other text as it is.

    >>> [_as_number(text) for text in ("1", "01", "1.0", "1a", "1e3")]
    ['1', '1', '1', '1a', '1e3']
    """
    found = re.fullmatch(r"0*(\d+?)(?:[.,]0+)?", text)
    return found[1] if found else text


def _alike_subjects(table: ExampleTable) -> tuple[tuple[str, str], ...]:
    if table.subjects == table.ids:
        return ()
    return _alike(list(dict.fromkeys(table.subjects)), numbers=True)


def _alike_sites(table: ExampleTable) -> tuple[tuple[str, str, str], ...]:
    return tuple(
        (column, one, two)
        for column, values in table.columns.items()
        if column.casefold() in SITE_COLUMNS
        for one, two in _alike(list(dict.fromkeys(values)), numbers=True)
    )


def _guess(table: ExampleTable, missing: Mapping[int, str]) -> str:
    if not missing or not isinstance(table.source, FileSource):
        return ""
    return where_they_are(table.source.root, list(missing.values()))


def only_class(name: str) -> str:
    """Sentence for data of one class, from which a model learns to say its name always."""
    return f"All pictures are of one class, '{visible(name)}': there is nothing to tell apart."


def _tables_beside(table: ExampleTable) -> str:
    """A sentence that names tables in the data root; empty if there are none."""
    if not isinstance(table.source, FileSource) or table.how.startswith("Labels are those"):
        return ""
    endings = (".csv", ".tsv", ".xls", ".xlsx", ".ods", ".json", ".parquet")
    found = [p.name for p in sorted(table.source.root.glob("*")) if p.suffix.lower() in endings]
    if not found:
        return ""
    return (
        f"The labels may be in {first_few(found)}: for a CSV, --name manifest "
        "--set data.manifest=FILE."
    )


def refuse_contradictions(table: ExampleTable) -> None:
    """Refuse byte-equal pictures with different labels, as the check does.

    Raises:
        DataError: names the first of them.
    """
    _, two_labels, _ = _equal_pictures(table)
    if two_labels:
        pairs = [" = ".join(pair) for pair in two_labels]
        raise DataError(
            f"{counted(len(pairs), *_TWO_LABELS)} two labels: {first_few(pairs)}.",
            why="Each would be learned as two classes.",
            remedy="Keep one of each, or map one label to the other in data.label_map.",
        )


def _missing(table: ExampleTable) -> dict[int, str]:
    if not isinstance(table.source, FileSource):
        return {}
    absent = set(table.source.missing())
    paths = table.source.relative_paths
    return {i: paths[row] for i, row in enumerate(table.rows.tolist()) if paths[row] in absent}


def _parted(table: ExampleTable) -> tuple[str, ...]:
    pairs = set(zip(table.subjects, table.splits, strict=True))
    counts = Counter(subject for subject, _ in pairs)
    parted = [subject for subject, count in counts.items() if count > 1]
    return tuple(shown_subjects(parted, table.subjects, table.ids))


def _equal_pictures(table: ExampleTable) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Pairs of byte-equal pictures: in two splits, with two labels, and merely repeated."""
    first: dict[bytes, int] = {}
    shared, two_labels, repeated = [], [], []
    for position in range(len(table)):
        other = first.setdefault(table.view_key(position), position)
        if other == position:
            continue
        pair = (table.ids[other], table.ids[position])
        labels = {int(table.labels_N[other]), int(table.labels_N[position])} - {UNLABELLED}
        if len(labels) > 1:
            two_labels.append(pair)
        if table.splits[other] != table.splits[position]:
            shared.append(pair)
        elif len(labels) <= 1:
            repeated.append(pair)
    return tuple(shared), tuple(two_labels), tuple(repeated)
