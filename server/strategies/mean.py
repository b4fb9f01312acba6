"""A weighted mean of tensors, folded in one at a time."""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.wire.arrays import on_all_cores, pieces

Tensors = dict[str, NDArray[np.float32]]


class RunningMean:
    """A weighted mean of tensors, folded in one at a time.

    ``mean += (x - mean) * (w / W)`` with W the weight so far (West 1979,
    https://doi.org/10.1145/359146.359153): float32 stays float32, equal updates give
    exactly themselves, and no sum grows with the number of sites. The order of the
    updates matters in the last bit, so the caller keeps it fixed.
    """

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self.weight: float = 0
        self.count = 0

    def fold(self, tensors: Tensors, weight: float) -> None:
        """Fold one update in; ``weight`` is above 0."""
        self.weight += weight
        self.count += 1
        if not self.tensors:
            self.tensors = {n: np.array(array, order="C") for n, array in tensors.items()}
            return
        share = weight / self.weight

        def move(piece: tuple[str, slice]) -> None:
            name, where = piece
            _move(self.tensors[name].reshape(-1)[where], tensors[name].reshape(-1)[where], share)

        of_all = pieces((name, mean.size) for name, mean in self.tensors.items())
        with warnings.catch_warnings():
            # What arrived cannot be written to, and is only read.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            on_all_cores(move, of_all, sum(mean.nbytes for mean in self.tensors.values()))


def _move(mean: NDArray[np.float32], new: NDArray[np.float32], share: float) -> None:
    # One pass over memory, which is what this costs; NumPy would need three.
    torch.from_numpy(mean).lerp_(torch.from_numpy(new), share)
