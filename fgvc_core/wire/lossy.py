"""What makes an update smaller: differences, 16 and 8 bits a value, and the largest values.

An update as its difference from the model that both sides know, and back.

Fewer bits a value: float16 and bfloat16, rounded to nearest, ties to even.

NumPy has no bfloat16; its values travel as the upper half of their float32 bits, in uint16.

>>> read_halves(write_halves(np.array([1.0, -2.5], np.float32), "bfloat16"), "bfloat16")
array([ 1. , -2.5], dtype=float32)

Eight bits a value: int8 codes from -127 to 127, and one float32 scale a channel.

A channel is one row along the first axis (an output channel of a convolution, a class of a
head); a tensor of one axis or none has a single scale. The scale is the channel's largest
magnitude / 127 (symmetric, no zero point: Jacob et al. 2018,
https://arxiv.org/abs/1712.05877, section 2, without the offset).

Rounding is to nearest, not stochastic. Its error is at most half a step where stochastic
rounding's is up to a whole one, with half the mean square; nothing is drawn, so a repeated
round gives equal bytes without a generator to keep; and the bias that speaks against it (a
value below half a step is lost round after round) is what error feedback undoes where
``wire.top_k`` is on, and what a scale for each channel keeps small where it is not.

The largest values of a tensor and where they are.

Top-k sparsification (Aji and Heafield 2017, https://arxiv.org/abs/1704.05021). What is left
out is not lost: the sender adds it to its next update (error feedback, Stich et al. 2018,
https://arxiv.org/abs/1809.07599), see :mod:`fgvc_core.wire.codec`.
"""

import numpy as np
from numpy.typing import NDArray

from fgvc_core.wire.arrays import Array

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


HALVES = {"float16": "float16", "bfloat16": "uint16"}
"""Precision -> the dtype that it travels as."""


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


LARGEST = 127

SMALLEST_SCALE = np.finfo(np.float32).tiny
"""A smaller scale would be a subnormal number, whose reciprocal overflows."""

LARGEST_SCALE = np.nextafter(np.float32(np.finfo(np.float32).max / LARGEST), np.float32(0))
"""A larger scale times a code would overflow."""


def channels(shape: tuple[int, ...]) -> int:
    """How many scales a tensor of this shape has.

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
    """The values that codes and scales stand for; allocates nothing else."""
    out = np.empty(codes.shape, dtype=np.float32)
    if out.size:
        rows = (len(scales_C), out.size // len(scales_C))
        np.multiply(codes.reshape(rows), scales_C[:, None], out=out.reshape(rows), dtype=np.float32)
    return out


def first_fault_of_codes(codes: NDArray[np.int8], scales_C: NDArray[np.float32]) -> str:
    """What makes a stranger's codes and scales unusable, or an empty text."""
    # Not-a-number fails both comparisons.
    if not np.all((scales_C >= SMALLEST_SCALE) & (scales_C <= LARGEST_SCALE)):
        return "has a scale that is not positive and finite"
    if codes.size and codes.min() < -LARGEST:
        return f"has a code below -{LARGEST}"
    return ""


def kept(size: int, share: float) -> int:
    """How many of ``size`` values travel: the share, rounded up, and one at least.

    >>> kept(1000, 0.1), kept(3, 0.01), kept(0, 0.5)
    (100, 1, 0)
    """
    return min(size, max(1, int(np.ceil(size * share - 1e-9))))


def index_dtype(size: int) -> str:
    """The narrowest dtype that counts the values of a tensor."""
    return "uint16" if size <= 1 << 16 else "uint32"


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Ascending places of the ``count`` largest magnitudes of a flat tensor.

    Of equal magnitudes the ones in front are taken, so that a repeated round chooses alike.
    """
    if count >= values.size:
        return np.arange(values.size)
    magnitudes = np.abs(values)
    bound = np.partition(magnitudes, values.size - count)[values.size - count]
    above = np.flatnonzero(magnitudes > bound)
    level = np.flatnonzero(magnitudes == bound)[: count - above.size]
    return np.sort(np.concatenate([above, level]))


def first_fault_of_places(at: Array, size: int) -> str:
    """What makes a stranger's places unusable, or an empty text."""
    if not at.size:
        return ""
    if not np.all(at[1:] > at[:-1]):
        return "has places that are not ascending"
    if int(at[-1]) >= size:
        return f"has a place beyond its {size} values"
    return ""
