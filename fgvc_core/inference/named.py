"""Pictures named by the user; those that cannot be read are refused, or collected."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.files import FileSource, first_few
from fgvc_core.errors import DataError
from fgvc_core.inference.finding import find_pictures
from fgvc_core.inference.trained import TrainedModel


class NamedPictures:
    """N pictures by path, in order, each once.

    Args:
        arguments: Files, folders and patterns; see :func:`find_pictures`.
        faults: If given, what cannot be read is recorded here, a sentence each, and passed over.

    Attributes:
        names: N names for display.

    Raises:
        DataError: if a name leads to no picture and ``faults`` is not given, or if none does.
    """

    def __init__(self, arguments: Sequence[Path | str], faults: list[str] | None = None) -> None:
        found = find_pictures([str(argument) for argument in arguments])
        missing = [f"{one.name}: {one.fault}" for one in found if one.fault]
        self._faults = faults
        if faults is not None:
            found = [one for one in found if not one.fault]
            if found:
                faults += missing
                missing = []
        if missing or not found:
            raise DataError(
                f"There are no pictures to take: {first_few(missing)}.",
                remedy="Name pictures, or folders that hold some.",
            )
        self.names = tuple(one.name for one in found)
        self._sources = [FileSource(one.root, (one.relative,)) for one in found]

    def __len__(self) -> int:
        return len(self.names)

    def views(self, trained: TrainedModel, most: int | None = None) -> "NamedViews":
        """Pictures as a model sees them.

        Args:
            trained: The model.
            most: Most pictures to use, evenly spread; None: all.

        Raises:
            DataError: names a damaged picture; with ``faults``, only if all are.
        """
        spec = trained.model.input
        at = spread(len(self), len(self) if most is None else most)
        short = round(spec.size / spec.crop)
        views, names = [], []
        for n in at:
            self._sources[n].read_as(trained.recipe.data)
            try:
                views.append(trained.view(self._sources[n].picture(0, short)))
            except DataError as error:
                if self._faults is None or (n == at[-1] and not views):
                    raise
                self._faults.append(error.what)
            else:
                names.append(self.names[n])
        return NamedViews(tuple(names), np.stack(views))


class NamedViews:
    """M names, and the pictures as uint8 (M, S, S, 3)."""

    def __init__(self, names: tuple[str, ...], views_NHWC: NDArray[np.uint8]) -> None:
        self.names = names
        self.views_NHWC = views_NHWC


def named_views(
    trained: TrainedModel,
    arguments: Sequence[Path | str],
    most: int | None = None,
    faults: list[str] | None = None,
) -> NamedViews:
    """Named pictures as a model sees them; see :class:`NamedPictures`."""
    return NamedPictures(arguments, faults).views(trained, most)


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` positions of ``count``, evenly spread, including the first and the last.

    >>> spread(10, 4)
    [0, 3, 6, 9]
    """
    at = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
    return [int(n) for n in at]
