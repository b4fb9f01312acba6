"""Eight bits a value: int8 codes from -127 to 127, and one float32 scale a channel.

A channel is one row along the first axis (an output channel of a convolution, a class of a
head); a tensor of one axis or none has a single scale. The scale is the channel's largest
magnitude / 127 (symmetric, no zero point: Jacob et al. 2018,
https://arxiv.org/abs/1712.05877, section 2, without the offset).

Rounding is to nearest, not stochastic. Its error is at most half a step where stochastic
rounding's is up to a whole one, with half the mean square; nothing is drawn, so a repeated
round gives equal bytes without a generator to keep; and the bias that speaks against it (a
value below half a step is lost round after round) is what error feedback undoes where
``wire.top_k`` is on, and what a scale for each channel keeps small where it is not.
"""

import numpy as np
from numpy.typing import NDArray

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


def first_fault(codes: NDArray[np.int8], scales_C: NDArray[np.float32]) -> str:
    """What makes a stranger's codes and scales unusable, or an empty text."""
    # Not-a-number fails both comparisons.
    if not np.all((scales_C >= SMALLEST_SCALE) & (scales_C <= LARGEST_SCALE)):
        return "has a scale that is not positive and finite"
    if codes.size and codes.min() < -LARGEST:
        return f"has a code below -{LARGEST}"
    return ""
