"""Data sets ``manifest`` and ``ham10000``: a CSV of pictures with labels and further columns.

HAM10000: Tschandl, Rosendahl, Kittler: The HAM10000 dataset, Scientific Data 5, 180161, 2018,
https://doi.org/10.1038/sdata.2018.161. 10,015 dermatoscopic pictures of 7,470 pigmented skin
lesions in seven very unequal classes. It publishes no split, so the hash of the lesion's id
holds out ``data.test_fraction``. The subject is the lesion, because the set names no
patients: a patient with two lesions counts as two subjects.
"""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.boxes import has_box_columns
from fgvc_core.data.catalogue import data_root, tolerant_dataset
from fgvc_core.data.file_kinds import looks_like_picture
from fgvc_core.data.files import FileSource, first_few
from fgvc_core.data.labels import LEFT_OUT, NO_LABEL, LeftOut, number_labels
from fgvc_core.data.layout import usual_split
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.sheets import (
    is_comment,
    plain_path,
    separator_of,
    utf8_lines,
    without_preamble,
)
from fgvc_core.data.soundness import refuse_unsound_list
from fgvc_core.data.table import SPLITS, ExampleTable, Split, held_out_splits
from fgvc_core.errors import DataError, nearest

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


_USUAL = {
    "data.path_column": (
        "file", "filename", "filepath", "image", "imagefile", "imageid", "imagename", "imagepath",
        "img", "imgpath", "isicid", "name", "picture",
    ),
    "data.label_column": (
        "category", "choice", "class", "classname", "diagnosis", "dx", "scientificname", "species",
        "target",
    ),
}  # fmt: skip


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.casefold())


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
    sheet = _read(root, root / settings.manifest, settings.manifest).only(settings)
    raw_paths = sheet.filled(settings.path_column, "data.path_column")
    raw_labels = sheet.column(settings.label_column, "data.label_column")
    subject_column = sheet.chosen(settings.subject_column, "subject", "data.subject_column")
    split_column = sheet.chosen(settings.split_column, "split", "data.split_column")
    paths = _paths(root, settings, raw_paths)
    if not (settings.crop == "box" and has_box_columns(list(sheet.values))):
        # With boxes, each line is one subject of its picture.
        _refuse_twice(paths, sheet)
    subjects = (
        tuple(sheet.filled(subject_column, "data.subject_column")) if subject_column else paths
    )
    splits = (
        _splits(sheet, split_column)
        if split_column
        else held_out_splits(subjects, raw_labels, settings.test_fraction, settings.test_rule)
    )
    _refuse_parted_subjects(subjects, splits, sheet)
    _refuse_unlabelled(raw_labels, splits, sheet)
    labels_N, class_names = number_labels(
        [None if split == "pool" else raw_labels[i] for i, split in enumerate(splits)],
        settings,
        sheet.name,
    )
    return _table(root, settings, sheet, paths, labels_N, splits, subjects, class_names)


def _paths(root: Path, settings: DataSettings, values: Sequence[str]) -> tuple[str, ...]:
    """Paths relative to the root, each in one spelling."""
    made = (settings.path_template.replace("{path}", plain_path(v, root)) for v in values)
    return tuple(plain_path(path, root) for path in made)


def _table(
    root: Path,
    settings: DataSettings,
    sheet: "_Sheet",
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
    sheet = _read_line_by_line(root, root / settings.manifest, settings.manifest, left_out)
    sheet = sheet.only(settings)
    raw_paths = sheet.column(settings.path_column, "data.path_column")
    raw_labels = sheet.column(settings.label_column, "data.label_column")
    subject_column = sheet.chosen(settings.subject_column, "subject", "data.subject_column")
    split_column = sheet.chosen(settings.split_column, "split", "data.split_column")
    paths = _paths(root, settings, raw_paths)
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
            mark(position, "without a subject")
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


@dataclass(frozen=True)
class _Sheet:
    """Columns of a CSV by name; line numbers count from 1, the header."""

    name: str
    values: dict[str, list[str]]
    lines: list[int]

    def column(self, name: str, setting: str) -> list[str]:
        if name not in self.values:
            known = list(self.values)
            usual = next((n for n in known if _plain(n) in _USUAL.get(setting, ())), None)
            hint = f"For instance --set {setting}={usual}." if usual else nearest(name, known)
            if any(looks_like_picture(n) for n in known):
                hint = "Its first line seems to be a picture's: give it a first line with names of "
                hint += "columns, for instance path,label."
            hint = hint or f"Set {setting} to the column that you mean."
            raise DataError(
                f"{self.name} has no column '{name}' ({setting}).",
                why=f"Its columns are: {', '.join(known)}.",
                remedy=hint,
            )
        return self.values[name]

    def only(self, settings: DataSettings) -> "_Sheet":
        """Lines of the site that the settings select; all lines without such a setting."""
        if settings.site_column is None:
            return self
        values = self.column(settings.site_column, "data.site_column")
        own = [i for i, value in enumerate(values) if value == settings.site_value]
        kept = {name: [column[i] for i in own] for name, column in self.values.items()}
        return _Sheet(self.name, kept, [self.lines[i] for i in own])

    def filled(self, name: str, setting: str) -> list[str]:
        """A column that may have no empty values."""
        values = self.column(name, setting)
        empty = [self.lines[i] for i, value in enumerate(values) if not value]
        if empty:
            raise DataError(
                f"{self.name}: column '{name}' is empty in {len(empty)} lines: {first_few(empty)}.",
                why=f"Every picture needs a value there ({setting}).",
                remedy="Fill the values in, or take the lines out.",
            )
        return values

    def chosen(self, name: str | None, usual: str, setting: str) -> str | None:
        """Name of the column that the settings name, else the usual one if it exists."""
        if name is None:
            return usual if usual in self.values else None
        self.column(name, setting)
        return name


def _text(path: Path, name: str) -> bytes:
    """A list's text as UTF-8.

    Raises:
        DataError: for a spreadsheet, and for text of 16 or 32 bits a character without a mark.
        OSError: if it cannot be read.
    """
    content = path.read_bytes()
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(
            f"{name} is a spreadsheet or an archive, and no CSV.",
            remedy="Save it as 'CSV UTF-8' in the spreadsheet program, and set data.manifest to "
            "that file.",
        )
    content = utf8_lines(content)
    if b"\0" in content.partition(b"\n")[0]:
        raise DataError(
            f"{name} is no UTF-8 text: its first line holds zero bytes.",
            why="Text of 16 or 32 bits a character looks so.",
            remedy="Save it as UTF-8 ('CSV UTF-8' in spreadsheet programs; in a shell: "
            "iconv -f UTF-16LE -t UTF-8).",
        )
    return content


def _read(root: Path, path: Path, name: str) -> _Sheet:
    lines: list[int] = []
    try:
        refuse_unsound_list(root, path)
        content, skipped, separator = without_preamble(_text(path, name))
        # csv wants line ends as they are; splitlines would also split at a form feed.
        text = io.StringIO(content.decode("utf-8"), newline="")
        header_line = text.readline()
        separator = separator or separator_of(header_line.strip("\r\n"))
        text.seek(0)
        reader = csv.reader(text, delimiter=separator, strict=True)
        header = [field.strip() for field in next(reader, [])]
        _check_header(header, name)
        values: dict[str, list[str]] = {field: [] for field in header}
        for fields in reader:
            if not any(field.strip() for field in fields) or is_comment(fields, header):
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{name}, line {skipped + reader.line_num}: {len(fields)} fields instead of "
                    f"{len(header)}.",
                    why="Values would land in the wrong columns.",
                    remedy="Mend the line; a value with a comma needs quotes.",
                )
            lines.append(skipped + reader.line_num)
            for field, value in zip(header, fields, strict=True):
                values[field].append(value.strip())
    except FileNotFoundError:
        raise _no_manifest(path) from None
    except csv.Error as error:
        raise DataError(
            f"{name}, line {skipped + reader.line_num}, cannot be read as a CSV: {error}.",
            why="A quotation mark opens a value that ends with the next one.",
            remedy="Close the quotation mark, or write two for one that belongs to the value.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{name} cannot be read as a CSV: {error}.",
            remedy="Save it as UTF-8 text ('CSV UTF-8' in spreadsheet programs; in a shell: "
            "iconv -f CP1252 -t UTF-8).",
        ) from None
    if not lines:
        raise DataError(f"{name} lists no pictures.", remedy="Give it one line a picture.")
    return _Sheet(name, values, lines)


def _read_line_by_line(root: Path, path: Path, name: str, left_out: LeftOut) -> _Sheet:
    """Read the sheet without its damaged lines; no line affects how another is read.

    Raises:
        DataError: if there is no such file, or its header is damaged.
    """
    try:
        refuse_unsound_list(root, path)
        content, skipped, separator = without_preamble(_text(path, name))
    except FileNotFoundError:
        raise _no_manifest(path) from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}.") from None
    header_line, *lines = content.split(b"\n")
    separator = separator or separator_of(header_line.decode("utf-8", "replace").strip())
    header = [field.strip() for field in _fields(header_line, separator) or ()]
    if not header:
        raise DataError(
            f"{name} has no header line that can be read as comma-separated UTF-8.",
            remedy="Give it a first line with the names of its columns.",
        )
    _check_header(header, name)
    sheet = _Sheet(name, {field: [] for field in header}, [])
    for number, line in enumerate(lines, start=skipped + 2):
        fields = _fields(line, separator)
        if not line.strip() or (fields and not any(field.strip() for field in fields)):
            continue
        if fields is not None and is_comment(fields, header):
            continue
        if fields is None or len(fields) != len(header):
            left_out.add("on a damaged line", f"line {number}")
            continue
        sheet.lines.append(number)
        for field, value in zip(header, fields, strict=True):
            sheet.values[field].append(value.strip())
    return sheet


def _fields(line: bytes, separator: str) -> list[str] | None:
    """Fields of one line; None if it is damaged."""
    try:
        text = line.rstrip(b"\r").decode("utf-8")
        (fields,) = csv.reader([text], delimiter=separator, strict=True)
    except (UnicodeDecodeError, ValueError, csv.Error):
        return None
    return fields


def _no_manifest(path: Path) -> DataError:
    return DataError(
        f"There is no manifest at '{path}'.",
        why="data.name = 'manifest' reads paths and labels from it.",
        remedy="Set data.manifest to the CSV's path, relative to data.path.",
    )


def _check_header(header: list[str], name: str) -> None:
    twice = [field for field, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(
            f"{name} has more than one column {first_few(twice)}.",
            why="It is not clear which one is meant.",
            remedy="Rename the columns.",
        )


def _refuse_twice(paths: Sequence[str], sheet: _Sheet) -> None:
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise DataError(
            f"{sheet.name} lists {len(twice)} pictures twice: {first_few(twice)}.",
            why="One picture could land in two splits, or with two labels.",
            remedy="Keep one line a picture.",
        )


def _splits(sheet: _Sheet, column: str) -> tuple[Split, ...]:
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
    subjects: Sequence[str], splits: Sequence[Split], sheet: _Sheet
) -> None:
    pairs = set(zip(subjects, splits, strict=True))
    parted = sorted(s for s, count in Counter(subject for subject, _ in pairs).items() if count > 1)
    if parted:
        raise DataError(
            f"{sheet.name}: {len(parted)} subjects are in more than one split: "
            f"{first_few(parted)}.",
            why="Pictures of one subject on both sides make scores look better than they are.",
            remedy="Give all pictures of a subject one split.",
        )


def _refuse_unlabelled(raw_labels: Sequence[str], splits: Sequence[Split], sheet: _Sheet) -> None:
    empty = [
        sheet.lines[i] for i, label in enumerate(raw_labels) if not label and splits[i] != "pool"
    ]
    if empty:
        raise DataError(
            f"{sheet.name} has no label in {len(empty)} lines: {first_few(empty)}.",
            why="Only pictures of the pool go without.",
            remedy="Fill the labels in, or mark the pictures as 'pool' in a split column.",
        )


HAM10000_METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
"""Names that the archives give to the metadata: Kaggle's, and Harvard Dataverse's two."""

HAM10000_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def ham10000_metadata(root: Path) -> str | None:
    """Name of the metadata of HAM10000 in a folder; None if it holds none."""
    return next((name for name in HAM10000_METADATA if (root / name).is_file()), None)


@tolerant_dataset("ham10000")
def build_ham10000(
    settings: DataSettings, cache: Path, left_out: LeftOut | None = None
) -> ExampleTable:
    """Build the table of HAM10000 (pictures and the published metadata) as a manifest.

    Pictures are in ``images/``, or as downloaded in ``HAM10000_images_part_1/`` and
    ``HAM10000_images_part_2/``, whatever their case, or beside the metadata.

    Args:
        settings: ``[data]``; the settings for manifests are ignored. The test split is always
            "hashed", so that results of all versions are of the same pictures.
        cache: See :func:`build_table`.
        left_out: See :func:`build_table`.

    Raises:
        ConfigurationError: if no path is given.
        DataError: as for a manifest.
    """
    root = data_root(settings)
    fixed = {
        "manifest": ham10000_metadata(root) or HAM10000_METADATA[0],
        "path_column": "image_id",
        "path_template": "images/{path}.jpg",
        "label_column": "dx",
        "subject_column": "lesion_id",
        "split_column": None,
        "test_rule": "hashed",
        "classes": settings.classes or HAM10000_CLASSES,
    }
    table = build_table(settings.model_copy(update=fixed), cache, left_out)
    parts = [folder for folder in _picture_folders(root) if folder != "images"]
    if not parts or not isinstance(table.source, FileSource):
        return table
    paths, here = list(table.source.relative_paths), set[str]()
    for folder in ("images", *parts):
        where = root / folder
        if where.is_dir():
            here |= {f"{folder}/{name}" if folder != "." else name for name in os.listdir(where)}
    for row, path in enumerate(paths):
        if path not in here:
            name = path.removeprefix("images/")
            tried = (name if folder == "." else f"{folder}/{name}" for folder in parts)
            paths[row] = next((each for each in tried if each in here), path)
    # Ids stay those of the usual layout, so that one picture has one id wherever it lies.
    source = FileSource(root, paths)
    return replace(table, source=source, how=f"Pictures are in {first_few(parts)}.")


def _picture_folders(root: Path) -> list[str]:
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    parts = [name for name in names if re.fullmatch("ham10000_images_part_[0-9]", name.lower())]
    loose = any(re.fullmatch(r"ISIC_[0-9]+\.jpg", name) for name in os.listdir(root))
    return [*parts, *(["."] if loose else [])]
