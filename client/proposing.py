"""Proposes ``[data]`` settings for a folder: its kind, and the columns of a CSV by their names."""

import csv
import io
import re
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from fgvc_core.data.file_kinds import litter
from fgvc_core.data.layout import usual_split
from fgvc_core.data.settings import PATIENT
from fgvc_core.data.sheets import separator_of, utf8_lines, without_preamble
from fgvc_core.errors import ConfigurationError, DataError, nearest

LINES_LOOKED_AT = 200
"""Lines of a CSV that are inspected to recognize its columns."""


class _NoPaths(ConfigurationError):
    """No column of a manifest names files."""


_LABELS = ("label", "class", "species", "category", "diagnosis", "dx", "variety")
_SUBJECTS = (
    "subject",
    "subjectid",
    "patient",
    "patientid",
    "lesionid",
    "animal",
    "animalid",
    "individual",
    "individualid",
)
_SPLITS = ("split", "set", "partition", "subset")
_SPLIT_WORDS = {"train", "training", "test", "testing", "val", "valid", "validation", "pool"}


def by_option(key: str, value: str) -> str:
    """How a person names a setting on the command line of a site.

    >>> by_option("label_column", "COLUMN")
    '--label-column COLUMN'
    """
    return f"--{key.replace('_', '-')} {value}"


def recognize(
    root: Path, said: Mapping[str, Any], naming: Callable[[str, str], str] = by_option
) -> dict[str, Any]:
    """Proposed settings of ``[data]`` for the files below a folder.

    Args:
        root: Root of the data set.
        said: Settings that a person has already made; they are kept, and guide the rest.
        naming: (setting, value) -> how a person names it, for remedies.

    Raises:
        ConfigurationError: if a manifest is used and its columns cannot be recognized.
        DataError: if a named manifest cannot be read.
    """
    found = dict(said)
    found.setdefault("kind", _kind(root, said))
    if found["kind"] == "manifest":
        try:
            return {**_manifest(root, found, naming), **found}
        except _NoPaths:
            # A CSV beside class folders may list something other than pictures.
            if {"kind", "manifest", "path_column", "path_template"} & set(said):
                raise
            found["kind"] = "folder"
    if found["kind"] == "folder" and "folders" not in said:
        names = {entry.name for entry in root.iterdir() if entry.is_dir()}
        # A class may be called 'pool': require that all folders are splits.
        shown = {name for name in names if not name.startswith(".") and not litter(name)}
        splits = "train" in {usual_split(name) for name in shown} and all(map(usual_split, shown))
        found["folders"] = "splits" if splits else "classes"
    return found


def _kind(root: Path, said: Mapping[str, Any]) -> str:
    from fgvc_core.data.aircraft import has_lists
    from fgvc_core.data.cars import META
    from fgvc_core.data.ham10000 import ham10000_metadata
    from fgvc_core.data.recognising import recognise_annotated

    told = {key for key, value in said.items() if value != PATIENT}
    if {"manifest", "label_column", "path_column", "subject_column"} & told:
        return "manifest"
    if (root / "images.txt").is_file() and (root / "classes.txt").is_file():
        return "cub"
    if ham10000_metadata(root) is not None:
        return "ham10000"
    if (root / META).is_file() or (root / "devkit" / META).is_file():
        return "cars"
    if has_lists(root) or has_lists(root / "data"):
        return "aircraft"
    annotated = recognise_annotated(root)
    if annotated is not None:
        return annotated
    return "manifest" if _csvs(root) else "folder"


def _csvs(root: Path) -> list[str]:
    names = (p.name for p in root.iterdir() if p.suffix.casefold() == ".csv" and p.is_file())
    return sorted(name for name in names if not name.startswith("."))


def _manifest(
    root: Path, said: Mapping[str, Any], naming: Callable[[str, str], str]
) -> dict[str, Any]:
    name = said.get("manifest")
    if name is None:
        names = _csvs(root)
        if len(names) != 1 and "manifest.csv" not in names:
            raise ConfigurationError(
                f"'{root}' holds {len(names)} CSV files: {', '.join(names[:5]) or 'none'}.",
                why="It is not clear which one lists the pictures.",
                remedy=f"Name it: {naming('manifest', 'FILE')}.",
            )
        name = names[0] if len(names) == 1 else "manifest.csv"
    header, rows = _look(root / name, naming)
    found: dict[str, Any] = {"manifest": name}
    _check_named(said, header, name, naming)
    if "path_column" not in said:
        found |= _paths(root, header, rows, said.get("path_template"), naming)
    taken = {said.get("path_column", found.get("path_column"))}
    if "label_column" not in said:
        column = _named(header, _LABELS, taken)
        if column is None:
            raise _untold("label", header, name, naming("label_column", "COLUMN"))
        found["label_column"] = column
    if "subject_column" not in said:
        column = _named(header, _SUBJECTS, taken)
        if column is not None:
            found["subject_column"] = column
    if "split_column" not in said:
        column = _named(header, _SPLITS, taken)
        if column is not None and _holds_splits([row.get(column, "") for row in rows]):
            found["split_column"] = column
    return found


def _look(path: Path, naming: Callable[[str, str], str]) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with path.open("rb") as file:
            start = file.read(LINES_LOOKED_AT * 4000)
        content, _, separator = without_preamble(utf8_lines(start))
        with io.StringIO(content.decode("utf-8", "replace"), newline="") as text:
            separator = separator or separator_of(text.readline().strip("\r\n"))
            text.seek(0)
            reader = csv.reader(text, delimiter=separator)
            header = [field.strip() for field in next(reader, [])]
            rows = [
                dict(zip(header, (value.strip() for value in row), strict=False))
                for row in islice(reader, LINES_LOOKED_AT)
            ]
    except (OSError, csv.Error) as error:
        raise DataError(
            f"The manifest '{path}' cannot be read: {error}.",
            remedy="Name a comma-separated UTF-8 file, relative to the data: "
            f"{naming('manifest', 'FILE')}.",
        ) from None
    return header, rows


def _check_named(
    said: Mapping[str, Any], header: list[str], name: str, naming: Callable[[str, str], str]
) -> None:
    for key in ("path_column", "label_column", "subject_column", "split_column", "site_column"):
        column = said.get(key)
        if column is not None and column != PATIENT and column not in header:
            raise ConfigurationError(
                f"{name} has no column '{column}' ({naming(key, str(column))}).",
                why=f"Its columns are: {', '.join(header)}.",
                remedy=nearest(str(column), header) or "Name one of these.",
            )


def _paths(
    root: Path,
    header: list[str],
    rows: list[dict[str, str]],
    template: str | None,
    naming: Callable[[str, str], str],
) -> dict[str, Any]:
    """Path column and template under which most values name existing files."""
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    templates = [template] if template else ["{path}", *(f"{f}/{{path}}" for f in folders)]
    if template is None:
        templates += [f"{t}{end}" for t in templates for end in (".jpg", ".jpeg", ".png")]
    sample = rows[:20]
    best: tuple[int, dict[str, Any]] = (0, {})
    for made in templates:
        for column in header:
            values = [row.get(column, "") for row in sample]
            hits = sum(bool(v) and _is_file(root / made.replace("{path}", v)) for v in values)
            if hits > best[0]:
                best = hits, {"path_column": column, "path_template": made}
    if 2 * best[0] < len(sample) or not best[0]:
        raise _NoPaths(
            "No column of the manifest names files below the data's folder.",
            why=f"Its columns are: {', '.join(header)}.",
            remedy=f"Name the column, {naming('path_column', 'COLUMN')}, and how its values become "
            f"paths, for instance {naming('path_template', 'images/{path}.jpg')}.",
        )
    return best[1]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _named(header: list[str], names: tuple[str, ...], taken: set[Any]) -> str | None:
    # PatientID, patient_id and "Patient ID" are the same name.
    by_name = {
        re.sub("[^a-z0-9]", "", field.casefold()): field for field in header if field not in taken
    }
    return next((by_name[name] for name in names if name in by_name), None)


def _holds_splits(values: list[str]) -> bool:
    return bool(values) and {value.casefold() for value in values} <= _SPLIT_WORDS


def _untold(what: str, header: list[str], name: str, naming: str) -> ConfigurationError:
    return ConfigurationError(
        f"Which column of {name} is the {what} cannot be told.",
        why=f"Its columns are: {', '.join(header)}.",
        remedy=f"Name it: {naming}.",
    )
