"""The kind of a data set, told from the files that only one kind has."""

from pathlib import Path

from fgvc_core.data import cars
from fgvc_core.data.aircraft import has_lists
from fgvc_core.data.coco_files import find_lists, has_ranks
from fgvc_core.data.cvat import is_cvat
from fgvc_core.data.ham10000 import ham10000_metadata
from fgvc_core.data.label_studio import find_export
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
    annotated = recognise_annotated(root)
    if annotated is not None:
        return annotated
    usual = DataSettings.model_fields["manifest"].default
    # 'fieldmark data make' writes both layouts; folders are the simpler one.
    if (root / usual).is_file() and not (root / "train").is_dir():
        return "manifest"
    return "folder"


def recognise_annotated(root: Path) -> str | None:
    """The ``data.name`` for a folder with an annotation tool's file; None if there is none.

    Labels of another kind, a manifest or class folders below split folders, go before.
    """
    try:
        return _annotated(root)
    except OSError:
        # The reader says what is wrong with the folder.
        return None


def _annotated(root: Path) -> str | None:
    usual = DataSettings.model_fields["manifest"].default
    if find_export(root) is not None:
        return "label-studio"
    if (root / usual).is_file():
        return None
    if is_cvat(root):
        return "cvat"
    lists = find_lists(root)
    if not lists or _has_classes(root):
        return None
    return "inaturalist" if has_ranks(root, lists) else "coco"


def _has_classes(root: Path) -> bool:
    """Whether there is a training folder with folders in it, as of classes."""
    return any(
        any(inner.is_dir() for inner in entry.iterdir())
        for entry in root.iterdir()
        if entry.is_dir() and usual_split(entry.name) == "train"
    )
