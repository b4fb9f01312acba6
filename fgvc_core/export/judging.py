"""Pictures for checking an export: the recipe's test split, or pictures named by the user."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.cache import cache_folder
from fgvc_core.data.pictures import PictureBank
from fgvc_core.errors import DataError
from fgvc_core.experiment import make_table
from fgvc_core.inference.named import named_views
from fgvc_core.inference.trained import TrainedModel
from fgvc_core.recipe import parse_recipe


@dataclass(frozen=True)
class Judges:
    """Pictures as the model sees them.

    Attributes:
        views_NHWC: uint8 (N, S, S, 3).
        labels_N: int64 (N,), or None if unknown.
        told: Description of the pictures.
    """

    views_NHWC: NDArray[np.uint8]
    labels_N: NDArray[np.int64] | None
    told: str


def held_out(trained: TrainedModel, overrides: Sequence[str] = ()) -> Judges:
    """The test split of the data that the model's recipe names.

    Args:
        trained: The model.
        overrides: ``--set`` strings, such as the location of the pictures on this machine.

    Raises:
        DataError: if the data are missing, or their classes are not the model's.
    """
    recipe = parse_recipe(trained.recipe.to_toml(), overrides)
    try:
        table = make_table(recipe, cache_folder()).where("test")
    except DataError as error:
        raise DataError(
            error.what,
            why="An export is checked on the test split of the model's data before it is written.",
            remedy="Say where they are with --set data.path=FOLDER, or name pictures with --check.",
        ) from None
    if table.class_names != trained.class_names or not len(table):
        raise DataError(
            "The test split of those data has no pictures of the model's classes.",
            remedy="Name the data that the model was trained for with --set, or pictures with "
            "--check.",
        )
    spec = trained.model.input
    bank = PictureBank(table, spec.size, spec.crop, spec.interpolation, cache_folder())
    views_NCHW = bank.batch(np.arange(len(table)))
    views_NHWC = np.ascontiguousarray(views_NCHW.permute(0, 2, 3, 1).numpy())
    return Judges(views_NHWC, table.labels_N, f"the test split of {recipe.data.name}")


def named(trained: TrainedModel, paths: Sequence[Path], most: int | None = None) -> Judges:
    """Pictures named by the user, without labels.

    Args:
        trained: The model.
        paths: Files and folders.
        most: Most pictures to use, evenly spread; None: all.

    Raises:
        DataError: if there are none, or one is damaged.
    """
    found = named_views(trained, paths, most)
    return Judges(found.views_NHWC, None, f"{len(found.names)} named pictures")
