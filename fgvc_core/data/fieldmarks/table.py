"""The embedded set as a table of examples."""

from pathlib import Path

import numpy as np

from fgvc_core.data.fieldmarks.bird import PART_NAMES
from fgvc_core.data.fieldmarks.source import FieldmarksSource, facts
from fgvc_core.data.fieldmarks.species import (
    ATTRIBUTE_NAMES,
    CLASS_NAMES,
    LEVELS,
    TAXONOMY,
    attributes_KA,
)
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import SPLITS, UNLABELLED, ExampleTable, Split


def build_table(settings: DataSettings, cache: Path) -> ExampleTable:
    """All examples of the embedded set, drawn if they are not cached yet.

    Args:
        settings: Seed, number of pictures a split, size.
        cache: Folder of the cache.
    """
    counts = (settings.fieldmarks_train, settings.fieldmarks_test, settings.fieldmarks_pool)
    source = FieldmarksSource(settings.fieldmarks_seed, counts, settings.image_size, cache)
    splits: list[Split] = [s for s, n in zip(SPLITS, counts, strict=True) for _ in range(n)]
    indices = [i for n in counts for i in range(n)]
    known = [facts(source.seed, s, i) for s, i in zip(splits, indices, strict=True)]
    filled = [s for s, n in zip(SPLITS, counts, strict=True) if n]
    return ExampleTable(
        source=source,
        rows=np.arange(len(splits), dtype=np.int64),
        ids=tuple(f"{s}/{i:06d}" for s, i in zip(splits, indices, strict=True)),
        labels_N=np.array(
            [UNLABELLED if s == "pool" else k.label for s, k in zip(splits, known, strict=True)],
            dtype=np.int64,
        ),
        splits=tuple(splits),
        subjects=tuple(f"{s}-{k.subject:05d}" for s, k in zip(splits, known, strict=True)),
        class_names=CLASS_NAMES,
        columns={
            "site": tuple(k.site for k in known),
            "camera": tuple(k.camera for k in known),
        },
        taxonomy=TAXONOMY,
        taxonomy_levels=LEVELS,
        attributes_KA=attributes_KA(),
        attribute_names=ATTRIBUTE_NAMES,
        parts_NP3=np.concatenate([np.asarray(source.parts(s)) for s in filled]),
        part_names=PART_NAMES,
        boxes_N4=np.concatenate([np.asarray(source.boxes(s)) for s in filled]),
    )
