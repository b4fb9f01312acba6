"""Recognition of a data set's layout: proposes ``[data]`` settings for a person to confirm.

``site join`` and ``site reading`` show the proposal (pictures and classes found, rows left out and
why) and write it only after confirmation.
"""

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvc_core.data.file_kinds import litter
from fgvc_core.data.files import first_few
from fgvc_core.data.labels import NO_CLASS
from fgvc_core.data.layout import usual_split
from fgvc_core.data.sheets import separator_of, utf8_lines, without_preamble
from fgvc_core.errors import ConfigurationError, DataError, PolicyRefusal, nearest
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.reading import EMBEDDED, SiteData, load_site_table
from fieldmark.client.site import Site, write_settings

if TYPE_CHECKING:
    from fgvc_core.recipe import Recipe

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


def recognize(root: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """Proposed settings of ``[data]`` for the files below a folder.

    Args:
        root: Root of the data set.
        said: Settings that a person has already made; they are kept, and guide the rest.

    Raises:
        ConfigurationError: if a manifest is used and its columns cannot be recognized.
        DataError: if a named manifest cannot be read.
    """
    found = dict(said)
    found.setdefault("kind", _kind(root, said))
    if found["kind"] == "manifest":
        try:
            return {**_manifest(root, found), **found}
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
    from fgvc_core.data.manifest import ham10000_metadata

    if {"manifest", "label_column", "path_column", "subject_column"} & set(said):
        return "manifest"
    if (root / "images.txt").is_file() and (root / "classes.txt").is_file():
        return "cub"
    if ham10000_metadata(root) is not None:
        return "ham10000"
    if (root / META).is_file() or (root / "devkit" / META).is_file():
        return "cars"
    if has_lists(root) or has_lists(root / "data"):
        return "aircraft"
    return "manifest" if _csvs(root) else "folder"


def _csvs(root: Path) -> list[str]:
    names = (p.name for p in root.iterdir() if p.suffix.casefold() == ".csv" and p.is_file())
    return sorted(name for name in names if not name.startswith("."))


def _manifest(root: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    name = said.get("manifest")
    if name is None:
        names = _csvs(root)
        if len(names) != 1 and "manifest.csv" not in names:
            raise ConfigurationError(
                f"'{root}' holds {len(names)} CSV files: {', '.join(names[:5]) or 'none'}.",
                why="It is not clear which one lists the pictures.",
                remedy="Name it: --manifest FILE.",
            )
        name = names[0] if len(names) == 1 else "manifest.csv"
    header, rows = _look(root / name)
    found: dict[str, Any] = {"manifest": name}
    _check_named(said, header, name)
    if "path_column" not in said:
        found |= _paths(root, header, rows, said.get("path_template"))
    taken = {said.get("path_column", found.get("path_column"))}
    if "label_column" not in said:
        column = _named(header, _LABELS, taken)
        if column is None:
            raise _untold("label", header, name, "--label-column")
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


def _look(path: Path) -> tuple[list[str], list[dict[str, str]]]:
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
            remedy="Name a comma-separated UTF-8 file with --manifest, relative to the data.",
        ) from None
    return header, rows


def _check_named(said: Mapping[str, Any], header: list[str], name: str) -> None:
    for key in ("path_column", "label_column", "subject_column", "split_column", "site_column"):
        column = said.get(key)
        if column is not None and column not in header:
            raise ConfigurationError(
                f"{name} has no column '{column}' (--{key.replace('_', '-')}).",
                why=f"Its columns are: {', '.join(header)}.",
                remedy=nearest(str(column), header) or "Name one of these.",
            )


def _paths(
    root: Path, header: list[str], rows: list[dict[str, str]], template: str | None
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
            remedy="Name the column with --path-column, and how its values become paths with "
            "--path-template, for instance 'images/{path}.jpg'.",
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


def _untold(what: str, header: list[str], name: str, option: str) -> ConfigurationError:
    return ConfigurationError(
        f"Which column of {name} is the {what} cannot be told.",
        why=f"Its columns are: {', '.join(header)}.",
        remedy=f"Name it: {option} COLUMN.",
    )


@dataclass(frozen=True)
class Understood:
    """Summary of how a site's data are read, for people at the site only; never part of a reply.

    Attributes:
        kind: How the pictures are read.
        pictures: Labeled training pictures, including those held out for validation.
        held_out: Number of them held out for validation.
        val_fraction: Fraction of units or subjects that is held out.
        other_splits: Pictures of the site's own test split and pool.
        classes: Class name -> number of labeled training pictures.
        left_out: Reason -> number of rows left out.
        examples_left_out: One phrase per reason, with the first few names.
        subjects: Number of subjects, if a column identifies them.
        how: Files and columns that are read, as set in ``[data]``.
        unused_labels: Labels in the label map that no picture has.
        strict_fault: Error that a strict reading (nothing left out) raises; empty if none.
        leaves_out: Whether a run without differential privacy also leaves out faulty pictures.
        unused: One phrase per reason for what lies below the data's folder and is not used.
    """

    kind: str
    pictures: int
    held_out: int
    val_fraction: float
    other_splits: dict[str, int]
    classes: dict[str, int]
    left_out: dict[str, int]
    examples_left_out: tuple[str, ...]
    subjects: int | None
    how: dict[str, str]
    unused_labels: tuple[str, ...]
    strict_fault: str
    leaves_out: bool
    unused: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The summary as lines of text."""
        told = [
            f"{self.pictures} pictures of {len(self.classes)} classes, read as '{self.kind}'"
            + (f", of {self.subjects} subjects" if self.subjects is not None else "")
        ]
        told += [f"{name}: {value}" for name, value in self.how.items()]
        told.append(
            f"{self.held_out} of them are kept for validation ({self.val_fraction:.0%} of the "
            "subjects, by a keyed hash); a run may set another share"
        )
        others = [f"{count} in '{split}'" for split, count in self.other_splits.items() if count]
        if others:
            told.append(f'not trained on: {", ".join(others)} (data.split = "none" changes that)')
        shown = [f"{name} {count}" for name, count in list(self.classes.items())[:12]]
        more = len(self.classes) - len(shown)
        told.append("classes: " + ", ".join(shown) + (f" and {more} more" if more > 0 else ""))
        total = sum(self.left_out.values())
        if total:
            told.append(f"{total} count as nothing:")
            told += [f"  {phrase}" for phrase in self.examples_left_out]
        else:
            told.append("nothing is left out")
        told += [f"not used: {phrase}" for phrase in self.unused]
        if self.unused_labels:
            told.append(f"labels in the map that no picture has: {first_few(self.unused_labels)}")
        if self.strict_fault and not self.leaves_out:
            told.append(
                "without differential privacy a run would answer 'unavailable' "
                f'(data.faults = "refuse"): {self.strict_fault}'
            )
        return told


def understand(
    site: "Site",
    recipe: "Recipe | None" = None,
    class_names: tuple[str, ...] = (),
    tell: Callable[[int, int], None] | None = None,
) -> Understood:
    """Read a site's data as ``site.toml`` says, opening every picture not yet known to be sound.

    Args:
        site: The site.
        recipe: Recipe of a run, for sizes and fractions; None for the defaults.
        class_names: Class names of the federation; empty for the site's own labels after its label
            map.
        tell: Called with (pictures opened, total).

    Raises:
        FieldmarkError: if the data cannot be read at all.
    """
    from collections import Counter

    from fgvc_core.data.labels import LeftOut
    from fgvc_core.data.opened import open_each
    from fgvc_core.recipe import Recipe
    from fgvc_core.training.learner import UNREADABLE
    from fieldmark.client.workspace import own_rows, split_table

    recipe = Recipe() if recipe is None else recipe
    left_out = LeftOut()
    own_data = site.settings.data
    table = load_site_table(site, recipe, class_names, left_out)
    faults = open_each(table, site.cache, tell)
    for position in faults:
        left_out.add(UNREADABLE, table.ids[position])
    sound = table.take([i for i in range(len(table)) if i not in faults])
    _, validation = split_table(site, recipe, sound)
    own = own_rows(site, sound)
    counts = own.class_counts_K().tolist()
    others = Counter(split for split in sound.splits if split != "train")
    column = own_data.subject_column
    fault = _strict_fault(site, recipe, class_names)
    if not fault and left_out.counts().get(UNREADABLE):
        fault = f"{left_out.counts()[UNREADABLE]} pictures cannot be read"
    return Understood(
        kind=own_data.kind or EMBEDDED,
        pictures=len(own),
        held_out=len(validation),
        val_fraction=recipe.data.val_fraction,
        other_splits=dict(sorted(others.items())) if site.rows is None else {},
        classes=dict(zip(own.class_names, counts, strict=True)),
        left_out=left_out.counts(),
        examples_left_out=tuple(left_out.sentences()),
        subjects=len(set(own.subjects)) if column else None,
        how=_how(own_data, site.name),
        unused_labels=tuple(sorted(set(own_data.label_map) - left_out.labels)),
        strict_fault=fault,
        leaves_out=own_data.faults == "leave-out" or bool(site.settings.policy.demand),
        unused=tuple(table.unused.sentences()),
    )


def _strict_fault(site: Site, recipe: "Recipe", class_names: tuple[str, ...]) -> str:
    try:
        load_site_table(site, recipe, class_names)
    except DataError as error:
        return error.what
    return ""


def _how(data: SiteData, name: str) -> dict[str, str]:
    """Files and columns that are read, for display."""
    if data.kind == "folder":
        first = "class" if data.folders == "classes" else "split (train, val, test, pool)"
        return {"labels from": f"folders below '{data.path}'; the first level is the {first}"}
    if data.kind != "manifest":
        return {"labels from": f"the published files below '{data.path}'"}
    found = {
        "manifest": f"{data.path}/{data.manifest}",
        "pictures from": f"column '{data.path_column}' as '{data.path_template}'",
        "labels from": f"column '{data.label_column}'",
        "subjects from": "no column: each picture is one"
        if data.subject_column is None
        else f"column '{data.subject_column}'",
    }
    if data.split_column is not None:
        found["splits from"] = f"column '{data.split_column}'"
    if data.site_column is not None:
        found["lines where"] = f"'{data.site_column}' is '{data.site_value or name}'"
    return found


def passed_over(root: Path, reading: Mapping[str, Any]) -> list[str]:
    """Line that names tables beside the pictures that are not read, in case they hold labels."""
    if reading.get("kind") != "folder":
        return []
    tables = sorted(
        entry.name
        for entry in root.iterdir()
        if entry.suffix.casefold() in (".csv", ".tsv", ".xls", ".xlsx", ".json", ".parquet")
    )
    if not tables:
        return []
    return [f"not read: {first_few(tables)} (a CSV that lists the pictures: --manifest FILE)"]


def proposed_by(recipe: "Recipe") -> dict[str, Any]:
    """Settings that a recipe's ``[data]`` proposes; a person at the site has to confirm them."""
    shared = set(SiteData.model_fields) - {"path", "units", "pictures", "kind"}
    said = recipe.data.model_fields_set
    found = {name: getattr(recipe.data, name) for name in sorted(said & shared)}
    if found.get("folders") == "auto":
        del found["folders"]
    if "name" in said:
        found["kind"] = recipe.data.name
    return found


def label_map_of(pairs: list[str]) -> dict[str, str]:
    """Label map from ``OWN=CLASS`` strings; several labels may map to one class.

    Raises:
        ConfigurationError: if a string has no equals sign or names no class.
    """
    found = {}
    for pair in pairs:
        own, equals, target = pair.partition("=")
        if not equals or not target.strip():
            raise ConfigurationError(
                f"--map-label '{pair}' is not OWN=CLASS.",
                remedy="For instance --map-label 'Parus major=Great tit', or 'unknown=-> none' to "
                "leave pictures with that label out.",
            )
        target = target.strip()
        if target.startswith("->"):
            if target[2:].strip().casefold() != "none":
                raise ConfigurationError(
                    f"--map-label '{pair}' leads nowhere.",
                    remedy=f"What begins with '->' is '{NO_CLASS}' and nothing else.",
                )
            target = NO_CLASS
        found[own.strip()] = target
    return found


def with_reading(site: Site, said: Mapping[str, Any]) -> Site:
    """Site with changed ``[data]`` settings; the layout is recognized if it was not set before.

    Raises:
        ConfigurationError: if a setting is invalid, or the site is simulated.
    """
    if site.rows is not None:
        raise ConfigurationError(
            f"'{site.home}' is the home of a simulated site.",
            why="How its data are read is the simulation's recipe to say.",
            remedy="Change [data] of the recipe.",
        )
    own = site.settings.data
    values = own.model_dump(exclude_unset=True)
    label_map = {**own.label_map, **said.get("label_map", {})}
    values |= {**said, "label_map": label_map}
    if own.path is not None and (own.kind is None or "kind" in said):
        values = recognize(Path(own.path), {k: v for k, v in values.items() if v is not None})
    data = SiteData.read({**values, "path": own.path, "units": own.units}, "[data]")
    return replace(site, settings=site.settings.model_copy(update={"data": data}))


def save_reading(site: Site, changed: Site) -> None:
    """Write the changed ``[data]`` into ``site.toml``.

    Raises:
        PolicyRefusal: if the ledger was charged with units defined in another way.
    """
    ledger = Ledger(site.home, site.data_binding, site.name)
    ledger.check_reading(changed.settings.data.units_digest())
    before, after = site.settings.data, changed.settings.data
    unknown = any(plan.charged[1] and not plan.reading for plan in ledger.plans())
    if unknown and before.kind is not None and before.units_digest() != after.units_digest():
        raise PolicyRefusal(
            "This ledger was charged by an earlier version, which did not write down how units "
            "were told apart.",
            why="Whether the change makes other units of the pictures cannot be told.",
            remedy="Keep kind, manifest, path, subject and site columns; labels may change.",
        )
    write_settings(site.home, changed.settings)
