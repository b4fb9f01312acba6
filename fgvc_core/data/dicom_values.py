"""Samples of a DICOM picture as 8-bit RGB: rescale, window and level or lookup table, inversion.

The steps are those of the standard (PS3.3, C.11 and C.7.6.3): the modality's table or slope and
intercept, then the file's VOI lookup table or first window, then inversion for MONOCHROME1. A rule
of ``data.depth`` stands in place of the file's own window, in units after the modality's step
(Hounsfield for CT). Samples of 8 bits without a window are shown as they are; deeper ones without
one are refused, as in every format.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.depth import HIGH, LOW, Depth, too_deep
from fgvc_core.errors import DataError

_ROWS = 256
_SAMPLED = 1_000_000

Floats = NDArray[np.float32]


def unreadable(path: Path, reason: str, remedy: str = "") -> DataError:
    """Error for a DICOM file; nothing of its contents may be in the reason."""
    return DataError(
        f"The picture '{path}' cannot be read: {reason}.",
        why="Its bytes or its ending say DICOM, and it holds no pixels that can be shown.",
        remedy=remedy or "Export it again, or take it out.",
    )


def as_grey(
    path: Path,
    pixels_HW: NDArray[Any],
    values: Any,
    depth: Depth | None,
    place: int = 0,
    *,
    inverted: bool,
) -> NDArray[np.uint8]:
    """Grey samples as uint8 (height, width, 3), a few rows at a time.

    Args:
        path: The file, for messages.
        pixels_HW: Stored values.
        values: pydicom's data set with the header's elements.
        depth: A rule in place of the file's window; None: the file's.
        place: Of the frame in the file, from 0.
        inverted: Whether small values are bright (MONOCHROME1).

    Raises:
        DataError: if there are more than 8 bits and no window.
        Exception: of any type, as pydicom does, for damaged tables.
    """
    values = _with_groups(values, place)
    shown = _shown(path, pixels_HW, values, depth)
    picture_HWC = np.empty((*pixels_HW.shape, 3), dtype=np.uint8)
    for top in range(0, len(pixels_HW), _ROWS):
        grey_HW = shown(pixels_HW[top : top + _ROWS])
        grey_HW = np.nan_to_num(grey_HW, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255)
        grey_HW = 255 - grey_HW if inverted else grey_HW
        picture_HWC[top : top + _ROWS] = grey_HW.round().astype(np.uint8)[..., None]
    return picture_HWC


def as_color(pixels: NDArray[Any], values: Any) -> NDArray[np.uint8]:
    """Color samples (RGB, or places in a palette) as uint8 (height, width, 3).

    Raises:
        Exception: of any type, as pydicom does, for damaged palettes.
    """
    from pydicom.pixels.processing import apply_color_lut

    if pixels.ndim == 2:
        pixels = apply_color_lut(pixels, values)
        if pixels.dtype != np.uint8:
            # Entries of a palette of 16 bits use their whole range (PS3.3, C.7.6.3.1.5).
            pixels = (pixels >> 8).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., :3].astype(np.uint8, copy=False))


def _with_groups(values: Any, place: int) -> Any:
    """The elements; those of a frame of an enhanced file lie in functional groups."""
    for groups, at in (
        ("SharedFunctionalGroupsSequence", 0),
        ("PerFrameFunctionalGroupsSequence", place),
    ):
        found = values[groups].value[at : at + 1] if groups in values else ()
        for item in found:
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for inner in item.get(name, None) or ():
                    values.update(inner)
    return values


def _shown(
    path: Path, pixels_HW: NDArray[Any], values: Any, depth: Depth | None
) -> Callable[[NDArray[Any]], Floats]:
    """Function from some rows of stored values to 0..255, not yet clipped."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    def meant(rows_HW: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = apply_modality_lut(rows_HW, values)
        return found

    def between(low: float, high: float) -> Callable[[NDArray[Any]], Floats]:
        return lambda rows_HW: ((meant(rows_HW) - low) * (255.0 / max(high - low, 1e-12))).astype(
            np.float32
        )

    if depth is not None:
        return between(*_range(pixels_HW, values, depth, meant))
    table = (values.get("VOILUTSequence", None) or [None])[0]
    if table is not None:
        bits = int(table.LUTDescriptor[2])
        if not 8 <= bits <= 16:
            raise ValueError("the table's entries have an odd size")
        most = float(2**bits - 1)
        return lambda rows_HW: (
            apply_voi(meant(rows_HW).astype(np.int64), values) * np.float32(255.0 / most)
        )
    window = _window(values)
    if window is not None:
        return lambda rows_HW: window(meant(rows_HW).astype(np.float32))
    bits = int(values.get("BitsStored", 0) or values.BitsAllocated)
    if bits > 8 or int(values.get("PixelRepresentation", 0) or 0):
        raise too_deep(path, f"DICOM of {bits} bits without a window of its own")
    return between(0.0, float(2**bits - 1))


def _first(values: Any, name: str) -> float | None:
    """First value of an element of several numbers; None if there is none."""
    found = values.get(name, None)
    if found is None or found == "":
        return None
    number = float(found[0] if hasattr(found, "__len__") and not isinstance(found, str) else found)
    return number if math.isfinite(number) else None


def _window(values: Any) -> Callable[[Floats], Floats] | None:
    """The file's first window as a function to 0..255 (PS3.3, C.11.2.1.2 and C.11.2.1.3)."""
    stated, width = _first(values, "WindowCenter"), _first(values, "WindowWidth")
    if stated is None or width is None or width <= 0:
        return None
    kind = str(values.get("VOILUTFunction", "") or "LINEAR").strip().upper()
    if kind == "SIGMOID":
        middle, wide = np.float32(stated), np.float32(width)
        return lambda v_HW: np.float32(255.0) / (1 + np.exp(-4 * (v_HW - middle) / wide))
    whole = kind == "LINEAR" and width >= 1
    center = np.float32(stated - 0.5 if whole else stated)
    reach = np.float32(max(width - 1, 1e-6) if whole else width)
    return lambda v_HW: ((v_HW - center) / reach + np.float32(0.5)) * np.float32(255.0)


def _range(
    pixels_HW: NDArray[Any],
    values: Any,
    depth: Depth,
    meant: Callable[[NDArray[Any]], NDArray[Any]],
) -> tuple[float, float]:
    """Values that become 0 and 255 by a rule."""
    if depth.rule == "window":
        center, width = depth.window
        return center - width / 2, center + width / 2
    if depth.rule == "scale":
        bits = int(values.get("BitsStored", 0) or values.BitsAllocated)
        signed = bool(int(values.get("PixelRepresentation", 0) or 0))
        ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        low, high = sorted(float(v) for v in meant(np.array([ends], dtype=np.int64)).ravel())
        return low, high
    flat = pixels_HW.reshape(-1)
    some = flat[:: max(len(flat) // _SAMPLED, 1)]
    padding = _first(values, "PixelPaddingValue")
    inside = some[some != padding] if padding is not None else some
    found = meant(inside if len(inside) else some).astype(np.float64)
    low, high = np.percentile(found, (LOW, HIGH))
    return float(low), float(high)
