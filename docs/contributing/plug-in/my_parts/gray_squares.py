"""Gray squares of three brightnesses: the smallest data set."""

import numpy as np
from pydantic import Field

from fgvc_core.configuration import Settings
from fgvc_core.data.catalogue import dataset
from fgvc_core.data.table import ExampleTable


class GraySettings(Settings):
    """The table [data.gray-squares] of a recipe."""

    examples: int = Field(60, ge=12, le=10_000, description="Pictures in all, 12 to 10,000.")


class Squares:
    """Where pictures come from: pictures by row, and what their content is."""

    def picture(self, row: int, size: int | None = None) -> np.ndarray:
        """uint8 (height, width, 3)."""
        return np.full((16, 16, 3), 60 * (row % 3) + row % 7, np.uint8)

    def content_key(self, row: int) -> bytes:
        """32 bytes; equal pictures have equal ones. For files: a digest of their bytes."""
        return self.picture(row).tobytes()[:32]


@dataset("gray-squares", settings=GraySettings)
def build(settings, cache):
    """The table: who is what, in which split, and who belongs together."""
    count = settings.own(GraySettings).examples
    return ExampleTable(
        source=Squares(),
        rows=np.arange(count),
        ids=tuple(f"square {i}" for i in range(count)),
        labels_N=np.arange(count) % 3,
        splits=tuple("test" if i % 5 == 4 else "train" for i in range(count)),
        # Pictures of one subject never meet in two sites or splits.
        subjects=tuple(f"square {i}" for i in range(count)),
        class_names=("dark", "middle", "light"),
    )
