"""What ``fieldmark new`` sees of pictures and of this machine, before it tries anything.

How the files are read is proposed as at a site (:mod:`fieldmark.client.proposing`), and they are
checked as by ``fieldmark data check``.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fgvc_core.cores import usable_cores
from fgvc_core.data.catalogue import load_table
from fgvc_core.data.check import SITE_COLUMNS, UNEQUAL, CheckReport, check_table
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError
from fgvc_core.experiment import pick_device
from fgvc_core.models.weight_names import not_installed
from fieldmark.client.proposing import recognize

MEASURED = 48
"""Pictures whose size is looked at."""

SITES = (2, 50)
"""A column whose number of different values is in this range may name the sites."""

FEWEST = 10
"""Fewest training pictures of a value for which a column names the sites."""


@dataclass(frozen=True)
class Seen:
    """What was seen.

    Attributes:
        data: Settings of ``[data]`` by which the pictures are read, without size and splits.
        settings: The same, complete.
        table: All examples.
        report: The check of them.
        short_side: Median of the shorter sides of some pictures, in pixels.
        site_column: A column that seems to name the sites; None without one.
        cores: Cores that may be used.
        gpu: Whether PyTorch finds a GPU.
        weights: Whether the ``weights`` extra is installed.
    """

    data: Mapping[str, Any]
    settings: DataSettings
    table: ExampleTable
    report: CheckReport
    short_side: int
    site_column: str | None
    cores: int
    gpu: bool
    weights: bool

    @property
    def train(self) -> ExampleTable:
        """The training split."""
        return self.table.where("train")

    @property
    def has_subjects(self) -> bool:
        """Whether pictures belong to subjects, of which some have several."""
        return len(set(self.table.subjects)) < len(self.table)

    @property
    def unequal(self) -> bool:
        """Whether the largest class is ten times the smallest, as ``data check`` notes."""
        counts_K = self.train.class_counts_K()
        return int(counts_K.max()) > UNEQUAL * int(counts_K.min())


def look(
    path: Path, said: Mapping[str, Any], tell: Callable[[int, int], None] | None = None
) -> Seen:
    """Read, check and measure a folder of pictures.

    Args:
        path: Root of the data set.
        said: Settings of ``[data]`` that a person has made.
        tell: Called with (pictures checked, total).

    Raises:
        ConfigurationError: if a table's columns cannot be told.
        DataError: if there is no such folder, or the check finds a fault: a recipe for such
            pictures could not be run.
    """
    if not path.is_dir():
        raise DataError(
            f"There is no folder '{path}' (--data).",
            why="The recipe is written for the pictures in it.",
            remedy="Name the folder that holds the pictures, or the CSV that lists them.",
        )
    data = _reading(path, said)
    settings = DataSettings.read({**data, "path": str(path.resolve())}, "[data]")
    from fgvc_core.data.cache import cache_folder

    table = load_table(settings, cache_folder(), require_pictures=False)
    report = check_table(table, tell, settings.max_left_out)
    _refuse_faults(path, report)
    return Seen(
        data=data,
        settings=settings,
        table=table,
        report=report,
        short_side=_short_side(table),
        site_column=_site_column(table),
        cores=len(usable_cores()),
        gpu=pick_device("auto").type == "cuda",
        weights=not not_installed(("tf_efficientnet_lite0",)),
    )


def _reading(path: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``[data]``, as a site would have them proposed."""
    known = {("kind" if key == "name" else key): value for key, value in said.items()}
    found = recognize(path, known, lambda key, value: f"--set data.{key}={value}")
    if "folders" not in said:
        # A table's own reading also sees through folders that wrap the tree.
        found.pop("folders", None)
    return {"name": found.pop("kind"), **found}


def _refuse_faults(path: Path, report: CheckReport) -> None:
    faults = report.faults()
    if not faults and len(report.classes) == 1:
        faults = [note for note in report.notes() if note.startswith("All pictures")]
    if not faults and not report.splits["test"]:
        faults = ["No picture is held out for the test."]
    if faults:
        raise DataError(
            " ".join(faults),
            why="No recipe is written for pictures that a run would refuse.",
            remedy=f"Repair them; 'fieldmark data check {path}' lists everything.",
        )


def _short_side(table: ExampleTable) -> int:
    """Median of the shorter sides of pictures spread over the table."""
    spread = np.linspace(0, len(table) - 1, min(MEASURED, len(table))).astype(int)
    return int(np.median([min(table.picture(at).shape[:2]) for at in spread.tolist()]))


def _site_column(table: ExampleTable) -> str | None:
    """A column such as "hospital" or "camera", if each of its values has pictures enough."""
    train = table.where("train")
    for name, values in train.columns.items():
        counts = Counter(values)
        few, many = SITES
        fits = few <= len(counts) <= many and min(counts.values()) >= FEWEST and "" not in counts
        if fits and name.casefold() in SITE_COLUMNS:
            return name
    return None
