"""HAM10000: dermatoscopic pictures of pigmented skin lesions.

Tschandl, Rosendahl, Kittler: The HAM10000 dataset, Scientific Data 5, 180161, 2018,
https://doi.org/10.1038/sdata.2018.161. 10,015 pictures of 7,470 lesions in seven very unequal
classes. No split is published: the keyed hash of the lesion's id holds ``data.test_fraction``
out. The subject is the lesion; the set names no patients, so that a patient with two
lesions is two subjects.
"""

from pathlib import Path

from fgvc_core.data.catalogue import data_root, tolerant_dataset
from fgvc_core.data.left_out import LeftOut
from fgvc_core.data.manifest import build_table as read_manifest
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable

METADATA = "HAM10000_metadata.csv"
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


@tolerant_dataset("ham10000")
def build_table(
    settings: DataSettings, cache: Path, left_out: LeftOut | None = None
) -> ExampleTable:
    """The table of ``images/*.jpg`` beside the published metadata: a manifest, set up.

    Args:
        settings: ``[data]``; the manifest's own settings are not looked at.
        cache: Handed on.
        left_out: Handed on.

    Raises:
        ConfigurationError: if no path is given.
        DataError: as for a manifest.
    """
    data_root(settings)
    fixed = {
        "manifest": METADATA,
        "path_column": "image_id",
        "path_template": "images/{path}.jpg",
        "label_column": "dx",
        "subject_column": "lesion_id",
        "split_column": None,
        "classes": settings.classes or CLASSES,
    }
    return read_manifest(settings.model_copy(update=fixed), cache, left_out)
