"""Data set ``label-studio``: labels as Label Studio exports them (JSON, JSON-MIN, CSV).

https://labelstud.io/guide/export: a list of tasks, each with ``data`` and ``annotations``, whose
``result`` holds ``choices``, ``taxonomy`` or regions in percent of the picture: rectangles (also
turned ones), ellipses and polygons are boxes around what they enclose, brush strokes and points are
labels without a box. JSON-MIN and CSV have one flat entry a task. Of several annotations of one
task all must say the same.

Label Studio names a picture by its own address (``/data/upload/7/0a1b2c3d-robin.jpg``,
``/data/local-files/?d=birds/robin.jpg``). It is looked for below the data root under that path and
by its name, with and without the eight digits that an upload adds, also in ``images/``.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.annotated import DAMAGED, Annotated, Record, objects, table_of, where
from fgvc_core.data.boxes import sound_box
from fgvc_core.data.catalogue import data_root, tolerant_dataset
from fgvc_core.data.coco_files import ends_of
from fgvc_core.data.file_kinds import looks_like_picture
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.sheets import separator_of, utf8_lines
from fgvc_core.data.soundness import refuse_unsound_list
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError

_LABELS = ("choice", "choices", "label", "class", "category", "species", "taxonomy")
_PICTURES = ("image", "picture", "photo", "img", "file", "path")
_REGIONS = (
    "choices", "taxonomy", "rectanglelabels", "ellipselabels", "polygonlabels", "brushlabels",
    "keypointlabels", "labels",
)  # fmt: skip
_WHOLE = ("choices", "taxonomy", "brushlabels", "keypointlabels")
"""Of these, those without a box."""
_HASHED = re.compile(r"^[0-9a-f]{8}-(?=.)")

Object = tuple[str, tuple[float, ...] | None]


@tolerant_dataset("label-studio")
def build_table(
    settings: DataSettings, cache: Path, left_out: LeftOut | None = None
) -> ExampleTable:
    """Build the table of an export of Label Studio: one example a picture, or one a rectangle.

    ``data.test_fraction`` of the pictures is held out.

    Args:
        settings: ``[data]``; ``manifest`` names the export, else the only one is taken.
        cache: Not used.
        left_out: If given, faulty entries are recorded here and left out.

    Raises:
        ConfigurationError: if no path is given.
        DataError: if there is no export, or it has no labeled pictures.
    """
    root = data_root(settings)
    named = settings.manifest if (root / settings.manifest).is_file() else find_export(root)
    if named is None:
        raise DataError(
            f"data.path = '{settings.path}' holds no single export of Label Studio.",
            why="data.name = 'label-studio' reads its JSON, JSON-MIN or CSV.",
            remedy="Name it: --set data.manifest=FILE.",
        )
    record = Record(left_out)
    how = f"Labels are those of '{named}' (Label Studio)."
    return table_of(_pictures(root, named, record), settings, root, record, named, how)


def find_export(root: Path) -> str | None:
    """The only JSON or CSV in a folder that looks like an export; None if it is not clear."""
    found = [
        path.name
        for path in sorted(root.iterdir())
        if path.suffix.lower() in (".json", ".csv", ".tsv") and path.is_file() and _is_export(path)
    ]
    return found[0] if len(found) == 1 else None


def _is_export(path: Path) -> bool:
    start = ends_of(path)[: 1 << 16]
    if path.suffix.lower() == ".json":
        text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
        whole = b'"annotations"' in text and b'"data"' in text and b'"result"' in text
        return text.startswith(b"[") and (whole or b'"annotation_id"' in text)
    header = utf8_lines(start).split(b"\n")[0].decode("utf-8", "replace")
    names = {n.strip(' "\r').casefold() for n in header.split(separator_of(header.strip()))}
    own = {"annotation_id", "lead_time", "annotator"} & names
    return "image" in names and bool(own or "choice" in names)


def _pictures(root: Path, named: str, record: Record) -> Iterator[Annotated]:
    for number, entry in enumerate(_entries(root, named), start=1):
        address = _address(entry)
        if address is None:
            record.aside(DAMAGED, f"entry {number}")
            continue
        names = _names_of(address)
        found = next((p for p in (where(root, n, ("", "images")) for n in names)
                      if (root / p).is_file()), names[0])  # fmt: skip
        yield Annotated(found, list(dict.fromkeys(_objects_of(entry))))


def _entries(root: Path, named: str) -> list[Any]:
    path = root / named
    try:
        refuse_unsound_list(root, path)
        content = utf8_lines(path.read_bytes())
        if path.suffix.lower() == ".json":
            found = json.loads(content)
            if isinstance(found, list):
                return found
            raise ValueError("it is no list of tasks")
        text = content.decode("utf-8")
        separator = separator_of(text.partition("\n")[0].strip("\r"))
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        return [{k: v for k, v in row.items() if k and isinstance(v, str)} for row in rows]
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise DataError(
            f"'{path}' cannot be read as an export of Label Studio: {error}.",
            remedy="Export it again as JSON.",
        ) from None


def _address(entry: object) -> str | None:
    """Address of an entry's picture; None if it has none."""
    if not isinstance(entry, dict):
        return None
    data = entry["data"] if isinstance(entry.get("data"), dict) else entry
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value}
    for key in (*(k for k in _PICTURES if k in texts), *texts):
        if looks_like_picture(_names_of(texts[key])[-1]) or key in _PICTURES:
            return texts[key]
    return None


def _names_of(address: str) -> list[str]:
    """Paths that an address may stand for, the fullest first."""
    try:
        parts = urlsplit(address)
        inner = parse_qs(parts.query).get("d", [""])[0]
    except ValueError:
        return [address]
    full = inner or (unquote(parts.path) if parts.scheme else unquote(address.split("?")[0]))
    full = re.sub(r"^/?data/(upload/\d+/)?", "", full).lstrip("/") or address
    name = PurePosixPath(full.replace("\\", "/")).name or full
    return list(dict.fromkeys([full, name, _HASHED.sub("", name)]))


def _objects_of(entry: Mapping[str, Any]) -> Iterator[Object]:
    """Labels, and the boxes of those that are rectangles, of one entry."""
    annotations = entry.get("annotations")
    if isinstance(annotations, list):
        for annotation in objects(annotations):
            if not annotation.get("was_cancelled"):
                for one in objects(annotation.get("result")):
                    value = one.get("value")
                    yield from _labels_of(value if isinstance(value, dict) else {}, _shape_of(one))
        return
    flat = {key: _parsed(value) for key, value in entry.items()}
    for value in flat.values():
        for one in [value] if isinstance(value, dict) else objects(value):
            yield from _labels_of(one, _shape_of(one))
    key = next((k for k in flat if k.casefold() in _LABELS and isinstance(flat[k], str)), None)
    if key is not None and flat[key]:
        yield str(flat[key]).strip(), None


def _labels_of(value: Mapping[str, Any], shape: float) -> Iterator[Object]:
    """Labels of a region or a choice; ``shape`` is the picture's width over its height."""
    for key in _REGIONS:
        labels = value.get(key)
        for label in labels if isinstance(labels, list) else ():
            # A taxonomy's choice is the path from the coarsest name to the finest.
            named = label[-1] if isinstance(label, list) and label else label
            if isinstance(named, str) and named.strip():
                yield named.strip(), _box_of(value, shape) if key not in _WHOLE else None


def _shape_of(one: Mapping[str, Any]) -> float:
    """Width over height of a region's picture; 1 if the export does not say."""
    width, height = one.get("original_width"), one.get("original_height")
    if isinstance(width, int) and isinstance(height, int) and 0 < width < 1e6 and 0 < height < 1e6:
        return width / height
    return 1.0


def _box_of(value: Mapping[str, Any], shape: float) -> tuple[float, ...] | None:
    """The box around a region, in fractions; None if it has none."""
    corners_N2 = _corners(value)
    if corners_N2 is None:
        return None
    turn = value.get("rotation")
    if isinstance(turn, int | float) and turn % 360 and "points" not in value:
        # About the point (x, y), which is a rectangle's corner and an ellipse's middle.
        angle = math.radians(turn % 360)
        pivot_2 = np.array([value["x"], value["y"]], dtype=np.float64)
        across_N, down_N = ((corners_N2 - pivot_2) * (shape, 1.0)).T
        corners_N2 = pivot_2 + np.stack(
            [
                (across_N * math.cos(angle) - down_N * math.sin(angle)) / shape,
                across_N * math.sin(angle) + down_N * math.cos(angle),
            ],
            axis=1,
        )
    low_2, high_2 = corners_N2.min(axis=0).clip(0, 100), corners_N2.max(axis=0).clip(0, 100)
    box = sound_box([*low_2.tolist(), *(high_2 - low_2).tolist()])
    return None if box is None else tuple(part / 100.0 for part in box)


def _corners(value: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Points of a region's outline (N, 2), in percent, not turned."""
    try:
        if "points" in value:
            found = np.array(value["points"], dtype=np.float64).reshape(-1, 2)
        elif "radiusX" in value:
            x, y, a, b = (float(value[key]) for key in ("x", "y", "radiusX", "radiusY"))
            around_N = np.linspace(0, 2 * np.pi, 64, endpoint=False)
            found = np.stack([x + a * np.cos(around_N), y + b * np.sin(around_N)], axis=1)
        else:
            x, y, w, h = (float(value[key]) for key in ("x", "y", "width", "height"))
            found = np.array([(x, y), (x + w, y), (x, y + h), (x + w, y + h)])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return found if len(found) > 1 and np.isfinite(found).all() else None


def _parsed(value: object) -> object:
    """A cell of a CSV that holds JSON, as that; other values as they are."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
