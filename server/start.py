"""The head before round 1: each site's class statistics once, and the head that follows."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import FieldmarkError, PeerError, RunFailed
from fgvc_core.models.class_statistics import ClassStatistics, unpack_statistics
from fgvc_core.recipe import Recipe
from fgvc_core.training.start import expected_statistics, no_attributes, started
from fgvc_core.wire.arrays import TensorSpec
from server.attendance import refused_by_all
from server.strategies import SoundReply

Tensors = dict[str, NDArray[np.float32]]


class FederatedStart:
    """Makes the head of the first model.

    Args:
        recipe: Its ``train.start`` is not ``none``.
        tensors: The model as it is; only its head will be replaced.
        attributes_KA: What is publicly known of the classes, or None.

    Raises:
        ConfigurationError: if the start needs attributes and there are none.
    """

    def __init__(
        self, recipe: Recipe, tensors: Tensors, attributes_KA: NDArray[np.float32] | None
    ) -> None:
        if recipe.train.start == "semantic" and attributes_KA is None:
            raise no_attributes()
        self._attributes_KA = attributes_KA
        self._settings = recipe.train
        self._tensors = tensors
        shapes = expected_statistics(tensors, recipe.train)
        self.specs = {name: TensorSpec("float32", shape) for name, shape in shapes.items()}
        """What a site's reply must hold."""
        self.refused: dict[str, str] = {}
        """Site -> why its statistics cannot be; filled by :meth:`run`."""

    def run(self, replies: Iterable[SoundReply]) -> tuple[Tensors | None, int]:
        """The new tensors, or None where nothing sound came; and how many sites' did.

        Sums add up in the order of the replies, which the caller keeps fixed; no more than
        two sites' are in memory at once.
        """
        total: ClassStatistics | None = None
        count = 0
        for reply in replies:
            found = self._read(reply)
            if found is not None:
                total = found if total is None else total.plus(found)
                count += 1
        if total is None or not total.counts_K.any():
            return None, count
        return started(self._tensors, total, self._settings, self._attributes_KA), count

    def _read(self, reply: SoundReply) -> ClassStatistics | None:
        try:
            return unpack_statistics(reply.tensors)
        except PeerError as error:
            self.refused[reply.site] = error.what
            return None


def refused_start(arrived: int, needed: int, refusals: dict[str, str]) -> FieldmarkError:
    """The error for a start that too few sites answered."""
    if not arrived and refusals:
        return refused_by_all(refusals)
    return RunFailed(
        f"The start found {arrived} sound replies of {needed} needed.",
        why="The head before round 1 would be made of too few sites' statistics.",
        remedy="The run's events.jsonl says why replies were refused; --resume asks again.",
    )
