"""Fewer bits a value: float16 and bfloat16, rounded to nearest, ties to even.

NumPy has no bfloat16; its values travel as the upper half of their float32 bits, in uint16.

>>> read_halves(write_halves(np.array([1.0, -2.5], np.float32), "bfloat16"), "bfloat16")
array([ 1. , -2.5], dtype=float32)
"""

import numpy as np
from numpy.typing import NDArray

from fgvc_core.wire.arrays import Array

HALVES = {"float16": "float16", "bfloat16": "uint16"}
"""Precision -> the dtype that it travels as."""

_BLOCK = 1 << 16


def write_halves(values: NDArray[np.float32], precision: str) -> Array:
    """Values in 16 bits each.

    Args:
        values: float32, any shape.
        precision: ``float16`` or ``bfloat16``.

    Returns:
        The same shape; a value beyond the format's range comes out infinite.
    """
    if precision == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounding = ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
    # A NaN with a full mantissa would wrap round to zero.
    rounding[np.isnan(values)] = 0
    halves: Array = ((bits + rounding) >> np.uint32(16)).astype(np.uint16)
    return halves.reshape(values.shape)


def read_halves(halves: Array, precision: str) -> NDArray[np.float32]:
    """Back to float32, exactly.

    Args:
        halves: What :func:`write_halves` makes, or a stranger's bits of that dtype.
        precision: ``float16`` or ``bfloat16``.

    Returns:
        The same shape. Beside it no more than a block of temporaries is allocated.
    """
    out = np.empty(halves.shape, dtype=np.float32)
    if precision == "float16":
        out[...] = halves
        return out
    flat, bits = halves.reshape(-1), out.reshape(-1).view(np.uint32)
    for start in range(0, flat.size, _BLOCK):
        into = bits[start : start + _BLOCK]
        into[...] = flat[start : start + _BLOCK]
        into <<= np.uint32(16)
    return out
