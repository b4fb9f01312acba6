"""Pictures that a person names, each of which has to be there."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.files import FileSource, first_few
from fgvc_core.errors import DataError
from fgvc_core.inference.finding import find_pictures
from fgvc_core.inference.trained import TrainedModel


class NamedPictures:
    """N pictures by their paths, in order, each once.

    Args:
        arguments: Files, folders and patterns; see :func:`find_pictures`.
        upright: Turn a picture as its EXIF orientation asks.

    Attributes:
        names: N, as they are shown.

    Raises:
        DataError: for a name behind which there is no picture.
    """

    def __init__(self, arguments: Sequence[Path | str], upright: bool = True) -> None:
        found = find_pictures([str(argument) for argument in arguments])
        missing = [f"{one.name}: {one.fault}" for one in found if one.fault]
        if missing or not found:
            raise DataError(
                f"There are no pictures to take: {first_few(missing)}.",
                remedy="Name pictures, or folders that hold some.",
            )
        self.names = tuple(one.name for one in found)
        self._sources = [FileSource(one.root, (one.relative,), upright=upright) for one in found]

    def __len__(self) -> int:
        return len(self.names)

    def views(self, trained: TrainedModel, most: int | None = None) -> "NamedViews":
        """Pictures as a model sees them.

        Args:
            trained: The model.
            most: At most so many, spread evenly over all; None: all.

        Raises:
            DataError: naming a picture that is damaged.
        """
        spec = trained.model.input
        at = spread(len(self), len(self) if most is None else most)
        short = round(spec.size / spec.crop)
        views = [trained.view(self._sources[n].picture(0, short)) for n in at]
        return NamedViews(tuple(self.names[n] for n in at), np.stack(views))


class NamedViews:
    """M names, and uint8 (M, S, S, 3) views of what they name."""

    def __init__(self, names: tuple[str, ...], views_NHWC: NDArray[np.uint8]) -> None:
        self.names = names
        self.views_NHWC = views_NHWC


def named_views(
    trained: TrainedModel, arguments: Sequence[Path | str], most: int | None = None
) -> NamedViews:
    """Named pictures as a model sees them; stored pixels are turned as in its training."""
    return NamedPictures(arguments, trained.upright).views(trained, most)


def spread(count: int, most: int) -> list[int]:
    """At most so many positions of ``count``, the first and the last among them.

    >>> spread(10, 4)
    [0, 3, 6, 9]
    """
    at = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
    return [int(n) for n in at]
