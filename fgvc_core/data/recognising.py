"""Which data set lies in a folder, told from the files that only it has."""

from pathlib import Path

from fgvc_core.data import cars, ham10000
from fgvc_core.data.aircraft import has_lists
from fgvc_core.data.settings import DataSettings


def recognise(root: Path) -> str:
    """The ``data.name`` that reads a folder; ``folder`` where nothing says otherwise."""
    if (root / "images.txt").is_file() and (root / "image_class_labels.txt").is_file():
        return "cub"
    if any((folder / cars.META).is_file() for folder in (root, root / "devkit")):
        return "cars"
    if has_lists(root) or has_lists(root / "data"):
        return "aircraft"
    if (root / ham10000.METADATA).is_file():
        return "ham10000"
    usual = DataSettings.model_fields["manifest"].default
    # 'fieldmark data make' writes both forms; the folders are the simpler one.
    if (root / usual).is_file() and not (root / "train").is_dir():
        return "manifest"
    return "folder"
