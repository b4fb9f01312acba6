"""Does a map point at what tells the classes apart? The pointing game and its controls.

Pointing game: Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop", section 4.1,
https://arxiv.org/abs/1608.00507: a hit is a map whose maximum lies on the object, 15 pixels off
being forgiven. Here the object is a part in which the true class differs from its runner-up, and
the forgiveness a share of the square's side. Energy in the box: Wang et al. 2020, "Score-CAM",
section 4.3, https://arxiv.org/abs/1910.01279: the share of a map's sum inside the object's box.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.decoding import Tell
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError
from fgvc_core.explain.class_maps import ClassMaps, Maps
from fgvc_core.explain.controls import UNCHANGED, centre_map, randomised, rank_correlation
from fgvc_core.explain.distinguishing import distinguishing
from fgvc_core.explain.regions import box_mask, seen_box, seen_parts
from fgvc_core.inference.trained import TrainedModel

TOLERANCE = 15 / 224
"""Share of the square's side: 15 pixels of 224."""

_BATCH = 32


@dataclass
class Tally:
    """What one kind of map scored.

    Attributes:
        hits: For each picture with a visible part that distinguishes: whether it was hit.
        part_hits: For each picture with any visible part: whether any was hit.
        energies: For each picture with a box: the share of the map's sum inside it, 0 to 1.
    """

    hits: list[bool] = field(default_factory=list)
    part_hits: list[bool] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, float | None]:
        """Means; None where nothing was counted."""
        return {
            "hit_rate": _mean(self.hits),
            "any_part_hit_rate": _mean(self.part_hits),
            "energy_in_box": _mean(self.energies),
        }


@dataclass(frozen=True)
class Game:
    """A game's settings.

    Attributes:
        method: See :class:`ClassMaps`.
        stage: Likewise.
        tolerance: Share of the square's side by which a map may miss, 0 to 0.5.
        contrast: Whether the map is of the true class against its runner-up (else of the true
            class alone).
        draws: How many networks with random weights are played, 1 at least.
    """

    method: str = "layercam"
    stage: str = "auto"
    tolerance: float = TOLERANCE
    contrast: bool = True
    draws: int = 3


@dataclass(frozen=True)
class _Picture:
    view_HWC: NDArray[np.uint8]
    parts_P3: NDArray[np.float64]
    box_4: NDArray[np.float64] | None
    label: int


def play(
    trained: TrainedModel, table: ExampleTable, game: Game, tell: Tell | None = None
) -> dict[str, Any]:
    """Play the game on every labelled picture of a table.

    Args:
        trained: The model.
        table: N examples with parts, of the model's classes.
        game: How.
        tell: Told of the pictures done.

    Returns:
        ``trained``, ``random_weights`` (mean over draws) and ``centre``, each with
        ``hit_rate``, ``any_part_hit_rate`` and ``energy_in_box``; ``ratio_centre`` and
        ``ratio_random`` of the hit rates; ``rank_correlation`` between trained and random maps,
        and ``unchanged_by_randomising`` where it is 0.5 or more;
        ``pictures``, ``scored`` and the settings.

    Raises:
        DataError: if the table has no parts or attributes, or other classes.
    """
    tells_KKP = distinguishing(table)
    if tells_KKP is None or table.parts_NP3 is None:
        raise DataError(
            "The pointing game needs pictures with part locations, and classes with attributes "
            "of those parts.",
            why="A hit is a map whose maximum lies on a part that tells the class from another.",
            remedy="Play it on the embedded set or on CUB-200-2011 with its parts and attributes.",
        )
    if table.class_names != trained.class_names:
        raise DataError(
            "The pictures' classes are not the model's.",
            remedy="Name the data that the model was trained for: --set data.path=...",
        )
    makers = [ClassMaps(trained.model, game.method, game.stage)]
    drawn = [randomised(trained, number) for number in range(game.draws)]
    makers += [ClassMaps(model, game.method, game.stage) for model in drawn]
    centre_HW = centre_map(trained.model.input.size)
    tallies = [Tally() for _ in makers]
    centre, alike, flat = Tally(), [], 0
    for start in range(0, len(table), _BATCH):
        at = range(start, min(start + _BATCH, len(table)))
        pictures = [_look(trained, table, position) for position in at]
        views_NHWC = np.stack([p.view_HWC for p in pictures])
        labels_N = np.array([p.label for p in pictures])
        rivals_N = _rivals(trained, views_NHWC, labels_N)
        against_N = rivals_N if game.contrast else None
        maps = [make(views_NHWC, labels_N, against_N) for make in makers]
        for n, picture in enumerate(pictures):
            tells_P = tells_KKP[picture.label, rivals_N[n]]
            for tally, maps_NHW in zip(tallies, maps, strict=True):
                _count(tally, maps_NHW[n], picture, tells_P, game.tolerance)
            _count(centre, centre_HW, picture, tells_P, game.tolerance)
            alike += [rank_correlation(maps[0][n], other_NHW[n]) for other_NHW in maps[1:]]
            flat += not maps[0][n].any()
        if tell is not None:
            tell(at.stop, len(table))
    return _told(game, tallies, centre, alike, flat, len(table))


def _look(trained: TrainedModel, table: ExampleTable, position: int) -> _Picture:
    spec = trained.model.input
    picture_HWC = table.picture(position, round(spec.size / spec.crop))
    height, width = picture_HWC.shape[:2]
    assert table.parts_NP3 is not None
    boxes_N4 = table.boxes_N4
    return _Picture(
        trained.view(picture_HWC),
        seen_parts(table.parts_NP3[position], height, width, spec),
        None if boxes_N4 is None else seen_box(boxes_N4[position], height, width, spec),
        int(table.labels_N[position]),
    )


def _rivals(
    trained: TrainedModel, views_NHWC: NDArray[np.uint8], labels_N: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The strongest class but the true one, of each picture."""
    logits_NK = trained.logits(views_NHWC).numpy().copy()
    logits_NK[np.arange(len(labels_N)), labels_N] = -np.inf
    return np.asarray(logits_NK.argmax(axis=1), dtype=np.int64)


def _count(
    tally: Tally,
    map_HW: NDArray[np.float32],
    picture: _Picture,
    tells_P: NDArray[np.bool_],
    tolerance: float,
) -> None:
    near_P = points_at(map_HW, picture.parts_P3, tolerance)
    visible_P = picture.parts_P3[:, 2] > 0
    if (visible_P & tells_P).any():
        tally.hits.append(bool((near_P & tells_P).any()))
    if visible_P.any():
        tally.part_hits.append(bool(near_P.any()))
    if picture.box_4 is not None:
        tally.energies.append(energy_in_box(map_HW, picture.box_4))


def points_at(
    map_HW: NDArray[np.float32], parts_P3: NDArray[np.float64], tolerance: float
) -> NDArray[np.bool_]:
    """bool (P,): the visible parts that a square map's maximum lies within the tolerance of.

    A map that is zero everywhere points at nothing. Where several pixels share the maximum,
    their mean place counts (a saturated patch points at its middle).
    """
    top = float(map_HW.max())
    if top <= 0:
        return np.zeros(len(parts_P3), dtype=np.bool_)
    rows, columns = np.nonzero(map_HW >= top)
    place = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
    far_P = np.linalg.norm(parts_P3[:, :2] - place, axis=1)
    return (far_P <= tolerance * map_HW.shape[0]) & (parts_P3[:, 2] > 0)


def energy_in_box(map_HW: NDArray[np.float32], box_4: NDArray[np.float64]) -> float:
    """The share of a map's sum inside a box, 0 to 1; 0 for a map that is zero everywhere."""
    total = float(map_HW.sum())
    if total <= 0:
        return 0.0
    return float((map_HW * box_mask(box_4, map_HW.shape[0])).sum()) / total


def _told(
    game: Game, tallies: list[Tally], centre: Tally, alike: list[float], flat: int, pictures: int
) -> dict[str, Any]:
    trained, *drawn = (tally.as_json() for tally in tallies)
    keys = trained.keys()
    random = {key: _mean([d[key] for d in drawn if d[key] is not None]) for key in keys}
    middle = centre.as_json()
    return {
        "pictures": pictures,
        "scored": len(centre.hits),
        "flat_maps": flat,
        "trained": trained,
        "random_weights": random,
        "centre": middle,
        "ratio_centre": _ratio(trained["hit_rate"], middle["hit_rate"]),
        "ratio_random": _ratio(trained["hit_rate"], random["hit_rate"]),
        "rank_correlation": _mean(alike),
        # Adebayo et al.: such maps say nothing of what was learnt.
        "unchanged_by_randomising": bool(alike) and float(np.mean(alike)) >= UNCHANGED,
        "method": game.method,
        "stage": game.stage,
        "contrast": game.contrast,
        "tolerance": game.tolerance,
        "draws": game.draws,
    }


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _ratio(one: float | None, two: float | None) -> float | None:
    return one / two if one is not None and two else None


__all__ = ["TOLERANCE", "Game", "Maps", "Tally", "energy_in_box", "play", "points_at"]
