"""Data set ``coco``: labels from a COCO or COCO Camera Traps JSON.

COCO Camera Traps (https://github.com/agentmorris/MegaDetector, "COCO Camera Traps format"; also
https://lila.science): ``images`` with ``file_name``, and ``seq_id`` and ``location`` where known;
``annotations`` with ``category_id`` and, for some, ``bbox``; ``categories``. Pictures of one burst
(``seq_id``) are one subject, because they are nearly equal.
"""

from pathlib import Path
from typing import Any

import numpy as np

from fgvc_core.data.boxes import read_json, sound_box
from fgvc_core.data.catalogue import data_root, tolerant_dataset
from fgvc_core.data.files import FileSource
from fgvc_core.data.labels import LeftOut, number_labels
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.sheets import plain_path
from fgvc_core.data.table import ExampleTable, held_out_splits
from fgvc_core.data.unused import Reason, Unused
from fgvc_core.errors import DataError

_NO_LABEL = Reason("without an annotation")
_SEVERAL = Reason("with annotations of more than one class")
_NO_CATEGORY = Reason(
    "annotations of a category that the JSON does not define", True, "Mend the file."
)
_NO_IMAGE = Reason("annotations of a picture that the JSON does not list", True, "Mend the file.")
_DAMAGED = Reason("in a damaged entry of the JSON", True, "Mend the file.")


def find_json(root: Path) -> str | None:
    """The only JSON beside or in ``annotations/`` that may be COCO's; None if it is not clear."""
    found = []
    for folder in (root, root / "annotations"):
        if folder.is_dir():
            found += [p for p in sorted(folder.glob("*.json")) if p.is_file()]
    fitting = [p for p in found if _looks_like_coco(p)]
    return str(fitting[0].relative_to(root)) if len(fitting) == 1 else None


def _looks_like_coco(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(1 << 20)
            if path.stat().st_size > 1 << 20:
                file.seek(-(1 << 16), 2)
                start += file.read()
    except OSError:
        return False
    return b'"images"' in start and (b'"annotations"' in start or b'"categories"' in start)


@tolerant_dataset("coco")
def build_table(
    settings: DataSettings, cache: Path, left_out: LeftOut | None = None
) -> ExampleTable:
    """Build the table of a COCO JSON: one example a picture, labeled with its one class.

    With ``data.crop = "box"`` and no ``data.boxes`` there is one example for each annotation with
    a box. The subject is the picture's ``seq_id`` or else the picture; the split is the keyed hash
    of the subject. Columns: ``location``.

    Args:
        settings: ``[data]``; ``manifest`` names the JSON, else the only one is taken.
        cache: Not used.
        left_out: If given, faulty entries are recorded here and left out.

    Raises:
        ConfigurationError: if no path is given.
        DataError: if there is no such file, or it lists no labeled pictures.
    """
    root = data_root(settings)
    named = settings.manifest if settings.manifest.lower().endswith(".json") else find_json(root)
    if named is None:
        raise DataError(
            f"data.path = '{settings.path}' holds no single COCO file.",
            why="data.name = 'coco' reads labels from a JSON with images, annotations, categories.",
            remedy="Name it: --set data.manifest=FILE.json.",
        )
    found = read_json(root, root / named)
    names = {
        str(one.get("id")): str(one.get("name"))
        for one in _objects(found.get("categories"))
        if one.get("name") is not None
    }
    unused = Unused()

    def aside(reason: Reason, name: str) -> None:
        unused.add(reason, name)
        if left_out is not None:
            left_out.add(reason.words, name)

    by_image: dict[str, list[dict[str, Any]]] = {}
    for one in _objects(found.get("annotations")):
        by_image.setdefault(str(one.get("image_id")), []).append(one)
    listed = {str(one.get("id")) for one in _objects(found["images"])}
    for image_id, own in by_image.items():
        for one in own:
            if image_id not in listed:
                unused.add(_NO_IMAGE, f"annotation {one.get('id')} of picture {image_id}")
            elif str(one.get("category_id")) not in names:
                unused.add(_NO_CATEGORY, f"annotation {one.get('id')} of picture {image_id}")
    by_box = settings.crop == "box" and settings.boxes is None
    rows: list[tuple[str, str, str, str, tuple[float, ...]]] = []
    nowhere = (float("nan"),) * 4
    for number, image in enumerate(found["images"]):
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
            aside(_DAMAGED, f"image {number + 1}")
            continue
        path = plain_path(image["file_name"], root)
        own = by_image.get(str(image.get("id")), [])
        labels = [(names.get(str(one.get("category_id"))), one) for one in own]
        known = [(name, one) for name, one in labels if name is not None]
        subject = str(image.get("seq_id") or path)
        location = str(image.get("location", ""))
        if not known:
            aside(_NO_LABEL, path)
        elif by_box:
            size = (image.get("width"), image.get("height"))
            for name, one in known:
                box = sound_box(one.get("bbox"))
                rows.append((path, name, subject, location, _fraction(box, size) or nowhere))
        elif len({name for name, _ in known}) > 1:
            aside(_SEVERAL, path)
        else:
            rows.append((path, known[0][0], subject, location, nowhere))
    paths = tuple(row[0] for row in rows)
    labels_N, class_names = number_labels(
        [row[1] for row in rows], settings, named, left_out, paths
    )
    subjects = tuple(row[2] for row in rows)
    return ExampleTable(
        source=FileSource(root, paths),
        rows=np.arange(len(paths), dtype=np.int64),
        ids=paths,
        labels_N=labels_N,
        splits=held_out_splits(
            subjects, [row[1] for row in rows], settings.test_fraction, settings.test_rule
        ),
        subjects=subjects,
        class_names=class_names,
        columns={"location": tuple(row[3] for row in rows)},
        boxes_N4=np.array([row[4] for row in rows], dtype=np.float32) if by_box else None,
        unused=unused,
        how=f"Labels are those of '{named}' (COCO); pictures of one seq_id are one subject.",
    )


def _fraction(
    box: tuple[float, ...] | None, size: tuple[object, object]
) -> tuple[float, ...] | None:
    """A box in pixels as fractions, where the file says how large the picture is."""
    width, height = size
    if box is None or not isinstance(width, int | float) or not isinstance(height, int | float):
        return box
    if width <= 0 or height <= 0:
        return box
    return (box[0] / width, box[1] / height, box[2] / width, box[3] / height)


def _objects(values: object) -> list[dict[str, Any]]:
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []
