"""Data sets ``coco`` and ``inaturalist``: labels from COCO, COCO Camera Traps or iNaturalist JSON.

COCO Camera Traps (https://github.com/agentmorris/MegaDetector, "COCO Camera Traps format"; also
https://lila.science): ``images`` with ``file_name``, and ``seq_id`` and ``location`` where known;
``annotations`` with ``category_id`` and, for some, ``bbox``; ``categories``. Pictures of one burst
(``seq_id``) are one subject, because they are nearly equal.

iNaturalist's competitions (https://github.com/visipedia/inat_comp) use the same form, one JSON for
each split; their categories have ranks, which become the taxonomy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fgvc_core.data.annotated import (
    DAMAGED,
    Annotated,
    Record,
    fraction,
    objects,
    table_of,
    where,
)
from fgvc_core.data.boxes import read_json, sound_box
from fgvc_core.data.catalogue import data_root, tolerant_dataset
from fgvc_core.data.coco_files import Listed, find_lists
from fgvc_core.data.files import first_few
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.data.unused import Reason
from fgvc_core.errors import DataError

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")

_NO_CATEGORY = Reason(
    "annotations of a category that the JSON does not define", True, "Mend the file."
)
_NO_IMAGE = Reason("annotations of a picture that the JSON does not list", True, "Mend the file.")


@tolerant_dataset("coco")
def build_table(
    settings: DataSettings, cache: Path, left_out: LeftOut | None = None
) -> ExampleTable:
    """Build the table of COCO JSONs: one example a picture, labeled with its one class.

    With ``data.crop = "box"`` and no ``data.boxes`` there is one example for each annotation with
    a box. The subject is the picture's ``seq_id`` or else the picture. Several files that are
    called like splits (``train2019.json``, ``val2019.json``) are these: ``val`` is the test split
    if there is no labeled ``test``, and one without annotations is not read. Of one file
    ``data.test_fraction`` of the subjects is held out. Columns: ``location``.

    Args:
        settings: ``[data]``; ``manifest`` may name one JSON.
        cache: Not used.
        left_out: If given, faulty entries are recorded here and left out.

    Raises:
        ConfigurationError: if no path is given.
        DataError: if there is no such file, or it lists no labeled pictures.
    """
    root = data_root(settings)
    lists = find_lists(root)
    if settings.manifest.lower().endswith(".json"):
        lists = [Listed(settings.manifest, None)]
    if not lists:
        raise DataError(
            f"data.path = '{settings.path}' holds no single COCO file.",
            why="data.name = 'coco' reads labels from a JSON with images, annotations, categories, "
            "or from several that are called like splits.",
            remedy="Name it: --set data.manifest=FILE.json.",
        )
    record = Record(left_out)
    files = [_File.read(root, one, record) for one in lists]
    used = [one for one in files if one.by_image or len(files) == 1]
    pictures = [picture for one in _with_splits(used) for picture in one.pictures(record)]
    named = first_few([one.listed.path for one in used]).replace("'", "")
    table = table_of(pictures, settings, root, record, named, _how(files, used))
    taxonomy, levels = _taxonomy(
        [one for file in used for one in file.categories], settings.name, table.class_names
    )
    return replace(table, taxonomy=taxonomy, taxonomy_levels=levels)


@tolerant_dataset("inaturalist", knows=("taxonomy",))
def build_inaturalist(
    settings: DataSettings, cache: Path, left_out: LeftOut | None = None
) -> ExampleTable:
    """Build the table of iNaturalist's JSONs; see :func:`build_table`.

    The taxonomy is that of the categories: the ranks that all of them have, or ``supercategory``.
    """
    return build_table(settings, cache, left_out)


@dataclass(frozen=True)
class _File:
    """One JSON, with the annotations of each picture that it lists."""

    root: Path
    listed: Listed
    images: list[Any]
    categories: list[dict[str, Any]]
    by_image: dict[str, list[dict[str, Any]]]

    @classmethod
    def read(cls, root: Path, listed: Listed, record: Record) -> "_File":
        """Read a JSON; annotations that lead nowhere are recorded."""
        found = read_json(root, root / listed.path)
        categories = [c for c in objects(found.get("categories")) if c.get("name") is not None]
        numbers = {str(one.get("id")) for one in categories}
        if record.left_out is None:
            _refuse_twice(listed.path, "category", [(c.get("id"), c["name"]) for c in categories])
            files = [(one.get("id"), one.get("file_name")) for one in objects(found["images"])]
            _refuse_twice(listed.path, "picture", files)
        known = {str(one.get("id")) for one in objects(found["images"])}
        by_image: dict[str, list[dict[str, Any]]] = {}
        for one in objects(found.get("annotations")):
            image_id = str(one.get("image_id"))
            by_image.setdefault(image_id, []).append(one)
            told = f"annotation {one.get('id')} of picture {image_id}"
            if image_id not in known:
                record.unused.add(_NO_IMAGE, told)
            elif str(one.get("category_id")) not in numbers:
                record.unused.add(_NO_CATEGORY, told)
        return cls(root, listed, found["images"], categories, by_image)

    def pictures(self, record: Record) -> Iterator[Annotated]:
        """The pictures with their known annotations."""
        names = {str(one.get("id")): str(one["name"]) for one in self.categories}
        for number, image in enumerate(self.images):
            if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
                record.aside(DAMAGED, f"image {number + 1}")
                continue
            size = (image.get("width"), image.get("height"))
            own = [
                (names[str(one.get("category_id"))], fraction(sound_box(one.get("bbox")), size))
                for one in self.by_image.get(str(image.get("id")), ())
                if str(one.get("category_id")) in names
            ]
            yield Annotated(
                where(self.root, image["file_name"], self.listed.folders),
                own,
                subject=str(image.get("seq_id") or ""),
                split=self.listed.split,
                columns={"location": str(image.get("location", ""))},
            )


def _refuse_twice(path: str, what: str, named: Sequence[tuple[object, object]]) -> None:
    """Refuse ids with two names: annotations would be taken for those of another one."""
    names: dict[str, set[str]] = {}
    for number, name in named:
        names.setdefault(str(number), set()).add(str(name))
    twice = {number: sorted(own) for number, own in names.items() if len(own) > 1}
    if twice:
        number, own = next(iter(twice.items()))
        raise DataError(
            f"{path} gives {what} id {number} to {first_few(own)}.",
            why="Its annotations would be taken for those of one of them, whichever comes last.",
            remedy="Give each an id of its own; where files were merged, renumber one of them.",
        )


def _with_splits(files: Sequence[_File]) -> list[_File]:
    """The files with their splits; 'val' is the test split if there is no other."""
    if any(one.listed.split == "test" and not one.listed.is_val for one in files):
        return [
            replace(one, listed=replace(one.listed, split="train")) if one.listed.is_val else one
            for one in files
        ]
    return list(files)


def _how(files: Sequence[_File], used: Sequence[_File]) -> str:
    shown = first_few([one.listed.path for one in used])
    told = f"Labels are those of {shown} (COCO); pictures of one seq_id are one subject."
    splits = [
        f"'{f.listed.path}' is {f.listed.split}" for f in _with_splits(used) if f.listed.split
    ]
    bare = [one.listed.path for one in files if one not in used]
    told += f" Splits: {', '.join(splits)}." if splits else ""
    return told + (f" Without annotations, not read: {first_few(bare)}." if bare else "")


def _taxonomy(
    categories: Sequence[dict[str, Any]], kind: str, class_names: tuple[str, ...]
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Lineage of each class and the names of the levels; empty without ranks.

    A level is left out where one of its names would have two parents.
    """
    by_name = {str(one["name"]): one for one in categories}
    if not class_names or not set(class_names) <= set(by_name):
        # Classes made by a label map have no ranks.
        return (), ()
    own = [by_name[name] for name in class_names]
    wanted = RANKS if any("genus" in one for one in own) else ("supercategory",)
    if wanted == ("supercategory",) and kind != "inaturalist":
        return (), ()
    levels: list[str] = []
    columns: list[list[str]] = []
    for rank in wanted:
        values = [str(one.get(rank) or "") for one in own]
        if not all(values):
            continue
        above = columns[-1] if columns else [""] * len(values)
        if len(set(zip(values, above, strict=True))) == len(set(values)):
            levels.append(rank)
            columns.append(values)
    if not levels:
        return (), ()
    return tuple(zip(*columns, class_names, strict=True)), (*levels, "species")
