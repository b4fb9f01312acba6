"""Lossy compression of updates: differences, 16-bit and 8-bit values, and top-k selection.

16 bits: float16 or bfloat16, rounded to nearest, ties to even. NumPy has no bfloat16; its values
are sent as the upper half of their float32 bits, in uint16.

>>> read_halves(write_halves(np.array([1.0, -2.5], np.float32), "bfloat16"), "bfloat16")
array([ 1. , -2.5], dtype=float32)

8 bits: int8 codes from -127 to 127, with one float32 scale per channel. A channel is one row along
the first axis (an output channel of a convolution, a class of a head); a tensor of one axis or none
has a single scale. The scale is the channel's largest magnitude / 127 (symmetric, no zero point:
Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 2, without the offset).

Codes are rounded to nearest, not stochastically. The error is at most half a step, where that of
stochastic rounding is up to a whole step, with half the mean square, and a repeated round gives
equal bytes without a stored generator. The disadvantage is bias: a value below half a step is lost
in every round. Error feedback corrects this with ``wire.top_k``; otherwise the scale per channel
keeps it small.

Top-k: the largest values of a tensor and their positions (Aji and Heafield 2017,
https://arxiv.org/abs/1704.05021). The sender adds the rest to its next update (error feedback,
Stich et al. 2018, https://arxiv.org/abs/1809.07599), see :mod:`fgvc_core.wire.codec`.
"""

import numpy as np
from numpy.typing import NDArray

from fgvc_core.wire.arrays import Array

_BLOCK = 1 << 16


def difference(tensor: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float32]:
    """``tensor - reference`` in float32."""
    return np.asarray(np.subtract(tensor, reference, dtype=np.float32))


def add_in_place(values: NDArray[np.float32], reference: NDArray[np.float32]) -> None:
    """``values += reference``; sums may overflow to infinity, which is checked afterwards."""
    with np.errstate(over="ignore", invalid="ignore"):
        values += reference


def scatter_add(
    values: NDArray[np.float32], at: NDArray[np.unsignedinteger], out: NDArray[np.float32]
) -> None:
    """Add values to a tensor at ascending, unique flat positions, block by block."""
    flat = out.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, at.size, _BLOCK):
            # Since positions are unique, += with an index array adds each value.
            flat[at[start : start + _BLOCK]] += values[start : start + _BLOCK]


HALVES = {"float16": "float16", "bfloat16": "uint16"}
"""Precision -> dtype of the encoded values."""


def write_halves(values: NDArray[np.float32], precision: str) -> Array:
    """Round values to 16 bits.

    Args:
        values: float32, any shape.
        precision: ``float16`` or ``bfloat16``.

    Returns:
        The same shape; a value beyond the format's range becomes infinite.
    """
    if precision == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounding = ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
    # Rounding a NaN with a full mantissa would wrap around to zero.
    rounding[np.isnan(values)] = 0
    halves: Array = ((bits + rounding) >> np.uint32(16)).astype(np.uint16)
    return halves.reshape(values.shape)


def read_halves(halves: Array, precision: str) -> NDArray[np.float32]:
    """Convert back to float32, exactly.

    Args:
        halves: A result of :func:`write_halves`, or untrusted bits of the same dtype.
        precision: ``float16`` or ``bfloat16``.

    Returns:
        The same shape. At most one block of temporaries is allocated besides.
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


LARGEST = 127

SMALLEST_SCALE = np.finfo(np.float32).tiny
"""A smaller scale would be subnormal, and its reciprocal would overflow."""

LARGEST_SCALE = np.nextafter(np.float32(np.finfo(np.float32).max / LARGEST), np.float32(0))
"""A larger scale times a code would overflow."""


def channels(shape: tuple[int, ...]) -> int:
    """The number of scales of a tensor with this shape.

    >>> channels((50, 1280)), channels((50,)), channels(())
    (50, 1, 1)
    """
    return shape[0] if len(shape) > 1 else 1


def quantise(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes and scales of a finite tensor.

    Returns:
        int8 codes of the same shape; float32 scales (C,), positive and finite.
    """
    count = channels(values.shape)
    rows_CV = values.reshape(count, values.size // max(count, 1))
    largest_C = np.abs(rows_CV).max(axis=1, initial=0.0)
    scales_C = np.clip(largest_C / np.float32(LARGEST), SMALLEST_SCALE, LARGEST_SCALE)
    scales_C = scales_C.astype(np.float32)
    codes_CV = np.rint(rows_CV / scales_C[:, None])
    np.clip(codes_CV, -LARGEST, LARGEST, out=codes_CV)
    return codes_CV.astype(np.int8).reshape(values.shape), scales_C


def dequantise(codes: NDArray[np.int8], scales_C: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values of codes and scales; allocates only the result."""
    out = np.empty(codes.shape, dtype=np.float32)
    if out.size:
        rows = (len(scales_C), out.size // len(scales_C))
        np.multiply(codes.reshape(rows), scales_C[:, None], out=out.reshape(rows), dtype=np.float32)
    return out


def first_fault_of_codes(codes: NDArray[np.int8], scales_C: NDArray[np.float32]) -> str:
    """Why untrusted codes and scales are unusable; empty if they are valid."""
    # NaN fails both comparisons.
    if not np.all((scales_C >= SMALLEST_SCALE) & (scales_C <= LARGEST_SCALE)):
        return "has a scale that is not positive and finite"
    if codes.size and codes.min() < -LARGEST:
        return f"has a code below -{LARGEST}"
    return ""


def kept(size: int, share: float) -> int:
    """How many of ``size`` values are sent: the share, rounded up, and at least one.

    >>> kept(1000, 0.1), kept(3, 0.01), kept(0, 0.5)
    (100, 1, 0)
    """
    return min(size, max(1, int(np.ceil(size * share - 1e-9))))


def index_dtype(size: int) -> str:
    """The narrowest dtype for positions in a tensor of ``size`` values."""
    return "uint16" if size <= 1 << 16 else "uint32"


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Ascending positions of the ``count`` largest magnitudes of a flat tensor.

    Among equal magnitudes the first ones are taken, so the selection is repeatable.
    """
    if count >= values.size:
        return np.arange(values.size)
    magnitudes = np.abs(values)
    bound = np.partition(magnitudes, values.size - count)[values.size - count]
    above = np.flatnonzero(magnitudes > bound)
    level = np.flatnonzero(magnitudes == bound)[: count - above.size]
    return np.sort(np.concatenate([above, level]))


def first_fault_of_places(at: Array, size: int) -> str:
    """Why untrusted positions are unusable; empty if they are valid."""
    if not at.size:
        return ""
    if not np.all(at[1:] > at[:-1]):
        return "has places that are not ascending"
    if int(at[-1]) >= size:
        return f"has a place beyond its {size} values"
    return ""
