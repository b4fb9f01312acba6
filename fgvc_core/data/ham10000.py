"""Data set ``ham10000``: HAM10000's pictures and published metadata, wherever they were unpacked.

Tschandl, Rosendahl, Kittler: The HAM10000 dataset, Scientific Data 5, 180161, 2018,
https://doi.org/10.1038/sdata.2018.161. 10,015 dermatoscopic pictures of 7,470 pigmented skin
lesions in seven very unequal classes. It publishes no split, so the hash of the lesion's id
holds out ``data.test_fraction``. The subject is the lesion, because the set names no
patients: a patient with two lesions counts as two subjects.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from fgvc_core.data.catalogue import data_root, tolerant_dataset
from fgvc_core.data.files import FileSource, first_few
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.manifest import build_table
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable

HAM10000_METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
"""Names that the archives give to the metadata: Kaggle's, and Harvard Dataverse's two."""

HAM10000_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def ham10000_metadata(root: Path) -> str | None:
    """Name of the metadata of HAM10000 in a folder; None if it holds none."""
    return next((name for name in HAM10000_METADATA if (root / name).is_file()), None)


@tolerant_dataset("ham10000")
def build_ham10000(
    settings: DataSettings, cache: Path, left_out: LeftOut | None = None
) -> ExampleTable:
    """Build the table of HAM10000 (pictures and the published metadata) as a manifest.

    Pictures are in ``images/``, or as downloaded in ``HAM10000_images_part_1/`` and
    ``HAM10000_images_part_2/``, whatever their case, or beside the metadata.

    Args:
        settings: ``[data]``; the settings for manifests are ignored. The test split is always
            "hashed", so that results of all versions are of the same pictures.
        cache: See :func:`fgvc_core.data.manifest.build_table`.
        left_out: See :func:`fgvc_core.data.manifest.build_table`.

    Raises:
        ConfigurationError: if no path is given.
        DataError: as for a manifest.
    """
    root = data_root(settings)
    fixed = {
        "manifest": ham10000_metadata(root) or HAM10000_METADATA[0],
        "path_column": "image_id",
        "path_template": "images/{path}.jpg",
        "label_column": "dx",
        "subject_column": "lesion_id",
        "split_column": None,
        "test_rule": "hashed",
        "classes": settings.classes or HAM10000_CLASSES,
    }
    table = build_table(settings.model_copy(update=fixed), cache, left_out)
    parts = [folder for folder in _picture_folders(root) if folder != "images"]
    if not parts or not isinstance(table.source, FileSource):
        return table
    paths, here = list(table.source.relative_paths), set[str]()
    for folder in ("images", *parts):
        where = root / folder
        if where.is_dir():
            here |= {f"{folder}/{name}" if folder != "." else name for name in os.listdir(where)}
    for row, path in enumerate(paths):
        if path not in here:
            name = path.removeprefix("images/")
            tried = (name if folder == "." else f"{folder}/{name}" for folder in parts)
            paths[row] = next((each for each in tried if each in here), path)
    # Ids stay those of the usual layout, so that one picture has one id wherever it lies.
    source = FileSource(root, paths)
    return replace(table, source=source, how=f"Pictures are in {first_few(parts)}.")


def _picture_folders(root: Path) -> list[str]:
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    parts = [name for name in names if re.fullmatch("ham10000_images_part_[0-9]", name.lower())]
    loose = any(re.fullmatch(r"ISIC_[0-9]+\.jpg", name) for name in os.listdir(root))
    return [*parts, *(["."] if loose else [])]
