"""Parts and boxes as the model sees them: in pixels of the square that was cut out.

Tables state them as fractions of the published picture (CUB's in its original pixels, which the
loader divides by the original size), so that a shrunken copy's still fit; the model sees the
picture resized and its centre cut out, and so do they.
"""

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.transforms import placement
from fgvc_core.models.inputs import InputSpec


def seen_parts(
    parts_P3: NDArray[np.float32], height: int, width: int, spec: InputSpec
) -> NDArray[np.float64]:
    """Parts in the model's square.

    Args:
        parts_P3: x and y as fractions of width and height, and 1 where visible.
        height: Of the picture that the square is cut from, in pixels of any scale.
        width: Likewise.
        spec: The model's input.

    Returns:
        float64 (P, 3): x and y in pixels of the square, and 1 where visible inside it, else 0.
    """
    target, corner = placement(height, width, spec.size, spec.crop)
    places_P2 = parts_P3[:, :2] * np.array(target) - np.array(corner)
    inside_P = ((places_P2 >= 0) & (places_P2 < spec.size)).all(axis=1)
    return np.column_stack([places_P2, inside_P & (parts_P3[:, 2] > 0)]).astype(np.float64)


def seen_box(
    box_4: NDArray[np.float32], height: int, width: int, spec: InputSpec
) -> NDArray[np.float64] | None:
    """A box in the model's square.

    Args:
        box_4: x, y, width and height as fractions.
        height: See :func:`seen_parts`.
        width: Likewise.
        spec: The model's input.

    Returns:
        float64 (4,): left, top, right, bottom in pixels, clipped to the square; None where the
        box is unknown or lies outside.
    """
    target, corner = placement(height, width, spec.size, spec.crop)
    low_2 = box_4[:2] * np.array(target) - np.array(corner)
    high_2 = low_2 + box_4[2:] * np.array(target)
    corners_4 = np.clip(np.concatenate([low_2, high_2]), 0, spec.size)
    if not np.isfinite(corners_4).all() or (corners_4[2:] <= corners_4[:2]).any():
        return None
    return corners_4.astype(np.float64)


def box_mask(box_4: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """float64 (size, size): the share of each pixel that a box covers, 0 to 1."""
    edges = np.arange(size + 1, dtype=np.float64)

    def covered(low: float, high: float) -> NDArray[np.float64]:
        return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, 1)

    return np.outer(covered(box_4[1], box_4[3]), covered(box_4[0], box_4[2]))
