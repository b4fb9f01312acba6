"""Class activation maps that show where the model confused two classes.

Only pictures of the coordinator's test split that may be shown are used, never a site's.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fgvc_core.data.table import ExampleTable
from fgvc_core.data.transforms import square
from fgvc_core.errors import FieldmarkError
from fgvc_core.models.classifier import FineGrainedClassifier

if TYPE_CHECKING:
    from fgvc_core.explain.class_maps import ClassMaps

SIDE = 160
"""Side of the pictures, in pixels."""

_INK = np.array([(255, 255, 204), (254, 178, 76), (240, 59, 32), (128, 0, 38)], dtype=np.float32)
"""From little to much evidence: light yellow, orange, red, dark red."""


def explain_pairs(
    model: FineGrainedClassifier, table: ExampleTable, pairs: list[dict[str, Any]], folder: Path
) -> str | None:
    """Add to each pair, as ``explained``, three pictures of its first mistake.

    These are the picture as the model sees it, a map for the predicted class and a map for the true
    class; each map is computed from the difference of the two logits.

    Args:
        model: The classifier.
        table: The test split.
        pairs: From :func:`fieldmark.server.results.evaluation.confused_pairs`; changed in place.
        folder: Pictures (PNG) are written here.

    Returns:
        None, or why there are no maps: the extra is missing, or the network does not support them.
    """
    from fgvc_core.explain.class_maps import ClassMaps

    try:
        maps = ClassMaps(model.eval())
        for pair in pairs:
            if pair["mistaken"]:
                pair["explained"] = _drawn(model, maps, table, pair, folder)
    except FieldmarkError as error:
        return str(error)
    except Exception as error:
        # A failed picture must not lose the run's results.
        return f"{type(error).__name__}: {error}"
    return None


def _drawn(
    model: FineGrainedClassifier,
    maps: "ClassMaps",
    table: ExampleTable,
    pair: dict[str, Any],
    folder: Path,
) -> list[str]:
    position, spec = int(pair["mistaken"][0]), model.input
    view_HWC = square(table.picture(position, spec.size), spec.size, spec.crop, spec.interpolation)
    wanted = [pair["predicted"], pair["true"]]
    maps_NHW = maps(np.stack([view_HWC, view_HWC]), wanted, wanted[::-1])
    names = []
    for kind, picture_HWC in (
        ("seen", view_HWC),
        ("named", overlay(view_HWC, maps_NHW[0])),
        ("is", overlay(view_HWC, maps_NHW[1])),
    ):
        names.append(f"{folder.name}/{position:06d}-{kind}.png")
        picture = Image.fromarray(picture_HWC)
        picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder.parent / names[-1])
    return names


def overlay(view_HWC: NDArray[np.uint8], map_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A picture in gray with a map over it; where the map is 0 the gray shows.

    Args:
        view_HWC: uint8 (H, W, 3).
        map_HW: float32 (H, W), 0 to 1.

    Returns:
        uint8 (H, W, 3).
    """
    grey_HW1 = view_HWC.astype(np.float32).mean(axis=2, keepdims=True)
    at_HW = np.clip(map_HW, 0.0, 1.0) * (len(_INK) - 1)
    low_HW = np.minimum(at_HW.astype(int), len(_INK) - 2)
    share_HW1 = (at_HW - low_HW)[:, :, None]
    ink_HWC = _INK[low_HW] * (1 - share_HW1) + _INK[low_HW + 1] * share_HW1
    weight_HW1 = 0.75 * np.clip(map_HW, 0.0, 1.0)[:, :, None]
    mixed: NDArray[np.uint8] = (
        (grey_HW1 * (1 - weight_HW1) + ink_HWC * weight_HW1).round().astype(np.uint8)
    )
    return mixed
