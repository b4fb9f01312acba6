"""The kind of a data set, told from the files that only one kind has."""

from pathlib import Path

from fgvc_core.data import cars
from fgvc_core.data.aircraft import has_lists
from fgvc_core.data.coco import find_json
from fgvc_core.data.ham10000 import ham10000_metadata
from fgvc_core.data.layout import usual_split
from fgvc_core.data.settings import DataSettings


def recognise(root: Path) -> str:
    """The ``data.name`` for a folder, from files that only one kind has; ``folder`` by default."""
    if (root / "images.txt").is_file() and (root / "image_class_labels.txt").is_file():
        return "cub"
    if any((folder / cars.META).is_file() for folder in (root, root / "devkit")):
        return "cars"
    if has_lists(root) or has_lists(root / "data"):
        return "aircraft"
    if ham10000_metadata(root) is not None:
        return "ham10000"
    if find_json(root) is not None and not _csv_or_classes(root):
        return "coco"
    usual = DataSettings.model_fields["manifest"].default
    # 'fieldmark data make' writes both layouts; folders are the simpler one.
    if (root / usual).is_file() and not (root / "train").is_dir():
        return "manifest"
    return "folder"


def _csv_or_classes(root: Path) -> bool:
    """Whether a tree has labels of another kind: a manifest, or split folders."""
    usual = DataSettings.model_fields["manifest"].default
    return (root / usual).is_file() or any(
        entry.is_dir() and usual_split(entry.name) == "train" for entry in root.iterdir()
    )
