"""An update as its difference from the model that both sides know, and back."""

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 16


def difference(tensor: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float32]:
    """``tensor - reference`` in float32."""
    return np.asarray(np.subtract(tensor, reference, dtype=np.float32))


def add_in_place(values: NDArray[np.float32], reference: NDArray[np.float32]) -> None:
    """``values += reference``; sums that overflow come out infinite, which is checked after."""
    with np.errstate(over="ignore", invalid="ignore"):
        values += reference


def scatter_add(
    values: NDArray[np.float32], at: NDArray[np.unsignedinteger], out: NDArray[np.float32]
) -> None:
    """Add a flat tensor's few values at their ascending, unique places, block by block."""
    flat = out.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, at.size, _BLOCK):
            # Unique places: adding by index reads and writes each once.
            flat[at[start : start + _BLOCK]] += values[start : start + _BLOCK]
