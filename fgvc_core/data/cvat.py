"""Data set ``cvat``: tags and boxes of an export "CVAT for images 1.1" (``annotations.xml``).

https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/: ``<image name width height>``
with ``<tag label>`` and ``<box label xtl ytl xbr ybr>``. Other shapes are counted and not read.
CVAT's export "COCO 1.0" is read by ``coco``, and "ImageNet" by ``folder``.

The XML is parsed as a stream. A document type, in which entities may unfold into all of the memory,
is refused: CVAT writes none.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from fgvc_core.data.annotated import DAMAGED, Annotated, Record, fraction, table_of, where
from fgvc_core.data.boxes import sound_box
from fgvc_core.data.catalogue import data_root, tolerant_dataset
from fgvc_core.data.coco_files import ends_of
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.layout import usual_split
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.soundness import refuse_unsound_list
from fgvc_core.data.table import ExampleTable, Split
from fgvc_core.data.unused import Reason
from fgvc_core.errors import DataError

USUAL = "annotations.xml"

_SHAPES = Reason("shapes that are neither tags nor boxes")
_ONLY_SHAPES = Reason(
    "annotated with polygons, points or masks alone, which are not read",
    True,
    "Give each picture a tag, or draw boxes (CVAT's 'COCO 1.0' has a box for each polygon).",
)
_OTHERS = frozenset({"polygon", "polyline", "points", "cuboid", "mask", "skeleton", "ellipse"})


@tolerant_dataset("cvat")
def build_table(
    settings: DataSettings, cache: Path, left_out: LeftOut | None = None
) -> ExampleTable:
    """Build the table of CVAT's XML: one example a picture; with ``data.crop = "box"`` one a box.

    The split is the picture's subset where it is called like one, else
    ``data.test_fraction`` of the pictures is held out.

    Args:
        settings: ``[data]``; ``manifest`` may name the XML.
        cache: Not used.
        left_out: If given, faulty entries are recorded here and left out.

    Raises:
        ConfigurationError: if no path is given.
        DataError: if there is no such file, it is damaged, or it has no labeled pictures.
    """
    root = data_root(settings)
    named = settings.manifest if settings.manifest.lower().endswith(".xml") else USUAL
    record = Record(left_out)
    pictures = list(_pictures(root, _images(root, root / named, record), record))
    how = f"Labels are those of '{named}' (CVAT for images)."
    return table_of(pictures, settings, root, record, named, how)


def is_cvat(root: Path) -> bool:
    """Whether a folder holds an export "CVAT for images"."""
    start = ends_of(root / USUAL)[: 1 << 16]
    return b"<annotations" in start and b"<version" in start


# Label of a shape that is not read, beside the attributes of its picture; no name in XML is this.
_OTHER_LABEL = " "
_Image = tuple[dict[str, str], list[tuple[str, dict[str, str]]]]


def _images(root: Path, path: Path, record: Record) -> list[_Image]:
    """Attributes of each picture, and (element, attributes) of its tags and boxes."""
    found: list[_Image] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if name == "image":
            found.append((attributes, []))
        elif found and name in ("tag", "box"):
            found[-1][1].append((name, attributes))
        elif found and name in _OTHERS:
            found[-1][0][_OTHER_LABEL] = attributes.get("label", "")
            record.unused.add(_SHAPES, f"{name} of {found[-1][0].get('name', '')}")

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type, and CVAT writes none")

    parser: Any = expat.ParserCreate()
    parser.StartElementHandler, parser.StartDoctypeDeclHandler = start, refuse
    try:
        refuse_unsound_list(root, path)
        with path.open("rb") as file:
            parser.ParseFile(file)
    except FileNotFoundError:
        raise DataError(
            f"There is no file '{path}'.",
            why="data.name = 'cvat' reads labels from an export 'CVAT for images 1.1'.",
            remedy="Name it: --set data.manifest=FILE.xml.",
        ) from None
    except (OSError, ValueError, expat.ExpatError) as error:
        raise DataError(
            f"'{path}' cannot be read as XML: {error}.", remedy="Export it again."
        ) from None
    return found


def _pictures(root: Path, images: list[_Image], record: Record) -> Iterator[Annotated]:
    for number, (attributes, shapes) in enumerate(images, start=1):
        name, subset = attributes.get("name", ""), attributes.get("subset", "")
        if not name:
            record.aside(DAMAGED, f"image {number}")
            continue
        size = (sound_number(attributes.get("width")), sound_number(attributes.get("height")))
        own = [
            (shape["label"], fraction(_box(shape), size) if kind == "box" else None)
            for kind, shape in shapes
            if shape.get("label")
        ]
        other = attributes.get(_OTHER_LABEL)
        if not own and other is not None:
            record.aside(_ONLY_SHAPES, name)
            record.lost_labels.add(other)
            continue
        folders = ("", "images", *((f"images/{subset}", subset) if subset else ()))
        yield Annotated(where(root, name, folders), own, split=_split(subset))


def _split(subset: str) -> Split | None:
    kind = usual_split(subset) if subset else None
    if kind is None or kind == "pool":
        return None
    return "test" if kind == "test" else "train"


def _box(shape: dict[str, str]) -> tuple[float, ...] | None:
    corners = [sound_number(shape.get(key)) for key in ("xtl", "ytl", "xbr", "ybr")]
    if any(value is None for value in corners):
        return None
    left, top, right, bottom = (float(value or 0.0) for value in corners)
    return sound_box([left, top, right - left, bottom - top])


def sound_number(text: str | None) -> float | None:
    """A number from an untrusted text; None if it is none."""
    try:
        return float(text) if text else None
    except ValueError:
        return None
