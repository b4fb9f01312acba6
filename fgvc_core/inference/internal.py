"""Models that are internal to one site: marked in their checkpoint, not to be passed on.

A head that a site inferred with its exact class sums is as private as the pictures. Its checkpoint
says so; who predicts with it is told, and no export or validation kit is made of it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from fgvc_core.errors import PolicyRefusal

if TYPE_CHECKING:
    from fgvc_core.inference.trained import TrainedModel

INTERNAL = "internal_to"
"""Key in a checkpoint's metadata: the name of the site that the model is internal to."""


def internal_note(trained: "TrainedModel") -> str:
    """A sentence for who uses an internal model; empty for any other."""
    site = trained.metadata.get(INTERNAL)
    if not site:
        return ""
    return (
        f"INTERNAL to {site}: this head was computed from that site's pictures without noise. "
        "Neither it nor its answers may leave the site."
    )


def refuse_internal(trained: "TrainedModel") -> None:
    """Refuse to pass an internal model on.

    Raises:
        PolicyRefusal: if the model is internal to a site.
    """
    site = trained.metadata.get(INTERNAL)
    if site:
        raise PolicyRefusal(
            f"'{trained.path}' is internal to the site '{site}' and is not exported.",
            why="Its head was computed from the site's pictures without noise: no epsilon covers "
            "what it says about each of them.",
            remedy="Export the released model of the run, from the coordinator's folder.",
        )


def load_for_export(checkpoint: Path, weights: str | None = None) -> "TrainedModel":
    """Load a model that is to be passed on.

    Args:
        checkpoint: A run's folder or a checkpoint of one.
        weights: The backbone's weights, if they are not where the recipe says.

    Raises:
        PolicyRefusal: if the model is internal to a site.
        DataError: if the checkpoint is missing or damaged.
    """
    from fgvc_core.inference.trained import load_trained

    trained = load_trained(checkpoint, weights=weights)
    refuse_internal(trained)
    return trained
