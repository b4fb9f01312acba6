"""Boxes around subjects, from files as detectors and annotation tools write them.

- MegaDetector's output (https://github.com/agentmorris/MegaDetector, "batch processing API output
  format"): ``images[].file``, ``detections[].{category, conf, bbox}``, boxes as fractions.
- COCO (https://cocodataset.org/#format-data) and COCO Camera Traps: ``images``, ``annotations``
  with ``bbox`` in pixels.
- CSV with a path column and ``x, y, width, height``.

A box is (x, y, width, height) from the top left of the upright picture: fractions of its width and
height if no value is above 1, else pixels.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgvc_core.data.files import Box, FileSource, first_few
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.sheets import plain_path
from fgvc_core.data.soundness import refuse_unsound_list
from fgvc_core.data.table import ExampleTable
from fgvc_core.data.unused import Reason
from fgvc_core.errors import DataError, nearest

NO_BOX = Reason("without a box")

_COLUMNS = (
    ("x", "y", "width", "height"),
    ("box_x", "box_y", "box_width", "box_height"),
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"),
    ("bbox_x", "bbox_y", "bbox_w", "bbox_h"),
)


def sound_box(values: object) -> Box | None:
    """A box from four untrusted values; None if they are none."""
    if not isinstance(values, list | tuple) or len(values) != 4:
        return None
    try:
        # Spreadsheets in many languages write 0,5.
        x, y, width, height = (
            float(value.replace(",", ".", 1) if isinstance(value, str) else value)
            for value in values
        )
    except (TypeError, ValueError, OverflowError):
        return None
    finite = all(math.isfinite(value) for value in (x, y, width, height))
    return (x, y, width, height) if finite and width > 0 and height > 0 else None


def read_json(root: Path, path: Path) -> dict[str, Any]:
    """An annotation file's object.

    Raises:
        DataError: if it is missing, too large, damaged, or no object.
    """
    try:
        refuse_unsound_list(root, path)
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"There is no file '{path}'.", remedy="Name it relative to data.path."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"'{path}' cannot be read as JSON: {error}.", remedy="Copy it again."
        ) from None
    if not isinstance(found, dict) or not isinstance(found.get("images"), list):
        raise DataError(
            f"'{path}' holds no list 'images'.",
            why="COCO's and MegaDetector's files have one.",
            remedy="Name another file.",
        )
    return found


def read_boxes(
    root: Path, path: Path, confidence: float, category: str | None
) -> dict[str, list[Box]]:
    """Boxes by picture, in the file's order.

    Args:
        root: Folder that the file must not lead out of, and that paths are relative to.
        path: The file.
        confidence: Least confidence of a detection, 0 to 1; boxes without one count.
        category: Name of the only category to take; None: all.

    Raises:
        DataError: if the file cannot be read, or has no such category.
    """
    found = read_json(root, path)
    names = _names(found.get("detection_categories") or found.get("categories"))
    if category is not None and names and category not in names.values():
        known = sorted(set(names.values()))
        raise DataError(
            f"'{path.name}' has no category '{category}'.",
            why=f"Its categories are: {first_few(known, 10)}.",
            remedy=nearest(category, known, 1) or "Name one of these in data.box_category.",
        )
    boxes: dict[str, list[Box]] = {}
    by_id: dict[str, str] = {}
    for image in found["images"]:
        if not isinstance(image, dict):
            continue
        name = image.get("file", image.get("file_name"))
        if not isinstance(name, str):
            continue
        key = plain_path(name, root)
        by_id[str(image.get("id"))] = key
        for one in _dicts(image.get("detections")):
            sure = one.get("conf", 1.0)
            if isinstance(sure, int | float) and sure >= confidence:
                _add(boxes, key, one, one.get("category"), names, category)
    for one in _dicts(found.get("annotations")):
        at = by_id.get(str(one.get("image_id")))
        sure = one.get("score", 1.0)
        if at is not None and isinstance(sure, int | float) and sure >= confidence:
            _add(boxes, at, one, one.get("category_id"), names, category)
    return boxes


def _add(
    boxes: dict[str, list[Box]],
    key: str,
    one: Mapping[str, Any],
    number: object,
    names: Mapping[str, str],
    category: str | None,
) -> None:
    box = sound_box(one.get("bbox"))
    if box is not None and (category is None or names.get(str(number)) == category):
        boxes.setdefault(key, []).append(box)


def _names(categories: object) -> dict[str, str]:
    """Category number (as text) -> name, from COCO's list or MegaDetector's object."""
    if isinstance(categories, dict):
        return {str(key): str(name) for key, name in categories.items()}
    return {str(one.get("id")): str(one.get("name")) for one in _dicts(categories)}


def _dicts(values: object) -> list[dict[str, Any]]:
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []


def cut_out(
    table: ExampleTable, settings: DataSettings, root: Path, left_out: LeftOut | None = None
) -> ExampleTable:
    """The table with each subject cut out: one example for each box, those of a picture together.

    Boxes are those of ``data.boxes``, of a manifest's columns, or the data set's own. A picture
    without a box is left out and counted. What an example becomes depends on its row alone.

    Args:
        table: Examples with pictures in files.
        settings: ``[data]`` with ``crop = "box"``.
        root: The data root.
        left_out: If given, examples without a box are recorded here.

    Raises:
        DataError: if there are no boxes at all, or their file cannot be read.
    """
    if not isinstance(table.source, FileSource):
        raise DataError(
            f"data.crop = 'box' needs pictures in files, and data.name = '{settings.name}' has "
            "none.",
            remedy="Set data.crop = 'none'.",
        )
    boxes = _boxes_of(table, settings, root)
    chosen: list[int] = []
    crops: list[Box] = []
    ids: list[str] = []
    seen: dict[str, int] = {}
    for position, each in enumerate(boxes):
        if not each:
            table.unused.add(NO_BOX, table.ids[position])
            if left_out is not None:
                left_out.add(NO_BOX.words, table.ids[position])
        for box in each:
            name = table.ids[position]
            seen[name] = seen.get(name, 0) + 1
            ids.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
            chosen.append(position)
            crops.append(box)
    if not chosen and left_out is None:
        raise DataError(
            "None of the pictures has a box.",
            why="data.crop = 'box' cuts each subject out by its box.",
            remedy="Check that the paths in the file of boxes are relative to data.path, and "
            "data.box_confidence and data.box_category."
            if settings.boxes
            else "A box is four numbers, x, y, width, height, with a width and a height above 0.",
        )
    part = table.take(chosen)
    paths = [table.source.relative_paths[row] for row in part.rows.tolist()]
    source = table.source.cropped(paths, crops, settings.crop_margin)
    values = {"source": source, "rows": np.arange(len(paths), dtype=np.int64), "ids": tuple(ids)}
    # Parts would have to move with the cut, and boxes are used up.
    return ExampleTable(
        **{**_fields(part), **values, "parts_NP3": None, "part_names": (), "boxes_N4": None}
    )


def _fields(table: ExampleTable) -> dict[str, Any]:
    return {name: getattr(table, name) for name in table.__dataclass_fields__}


def _boxes_of(table: ExampleTable, settings: DataSettings, root: Path) -> list[list[Box]]:
    """Boxes of each example."""
    assert isinstance(table.source, FileSource)
    if settings.boxes is not None:
        read = read_boxes(
            root, root / settings.boxes, settings.box_confidence, settings.box_category
        )
        paths = (table.source.relative_paths[row] for row in table.rows.tolist())
        return [read.get(path, []) for path in paths]
    if table.boxes_N4 is not None:
        sound = (sound_box(tuple(box)) for box in table.boxes_N4.tolist())
        return [[] if box is None else [box] for box in sound]
    names = next((names for names in _COLUMNS if set(names) <= set(table.columns)), None)
    if names is None:
        raise DataError(
            f"data.crop = 'box', and data.name = '{settings.name}' has no boxes here.",
            why="Each subject is cut out by its box.",
            remedy="Name a file of boxes in data.boxes (COCO or MegaDetector JSON), or give the "
            "manifest columns x, y, width and height.",
        )
    rows = zip(*(table.columns[name] for name in names), strict=True)
    found = (sound_box(row) for row in rows)
    return [[] if box is None else [box] for box in found]


def has_box_columns(names: Sequence[str]) -> bool:
    """Whether a manifest's columns hold boxes."""
    return any(set(each) <= set(names) for each in _COLUMNS)
