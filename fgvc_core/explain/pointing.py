"""The pointing game: do class maps point at the parts that distinguish the classes?

Pointing game: Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop", section 4.1,
https://arxiv.org/abs/1608.00507: a map hits if its maximum lies on the object, with a tolerance of
15 pixels. Here the object is a part in which the true class differs from the runner-up, and the
tolerance is a share of the picture's side. Energy in the box: Wang et al. 2020, "Score-CAM",
section 4.3, https://arxiv.org/abs/1910.01279: the share of a map's sum inside the object's box.

Tables give parts and boxes as fractions of the original picture; here they are mapped into the
resized and center-cropped square that the model sees.

Controls: a Gaussian at the center, and the same network with random weights. Adebayo et al. 2018,
"Sanity Checks for Saliency Maps", section 3, https://arxiv.org/abs/1810.03292: a map that stays the
same after the weights are randomized shows the picture or the architecture, not what was learned.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from fgvc_core.data.decoding import Tell
from fgvc_core.data.table import ExampleTable
from fgvc_core.data.transforms import placement
from fgvc_core.errors import DataError
from fgvc_core.explain.class_maps import ClassMaps, Maps
from fgvc_core.explain.distinguishing import distinguishing
from fgvc_core.inference.trained import TrainedModel
from fgvc_core.models.build import build_classifier
from fgvc_core.models.classifier import FineGrainedClassifier
from fgvc_core.models.weights import InputSpec
from fgvc_core.seeds import derive_seed


def seen_parts(
    parts_P3: NDArray[np.float32], height: int, width: int, spec: InputSpec
) -> NDArray[np.float64]:
    """Parts in the model's square.

    Args:
        parts_P3: x and y as fractions of width and height, and 1 if visible.
        height: Height of the picture before the crop, in pixels of any scale.
        width: Its width.
        spec: The model's input.

    Returns:
        float64 (P, 3): x and y in pixels of the square, and 1 if visible inside it, else 0.
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
        width: See :func:`seen_parts`.
        spec: The model's input.

    Returns:
        float64 (4,): left, top, right, bottom in pixels, clipped to the square; None if the box is
        unknown or outside.
    """
    target, corner = placement(height, width, spec.size, spec.crop)
    low_2 = box_4[:2] * np.array(target) - np.array(corner)
    high_2 = low_2 + box_4[2:] * np.array(target)
    corners_4 = np.clip(np.concatenate([low_2, high_2]), 0, spec.size)
    if not np.isfinite(corners_4).all() or (corners_4[2:] <= corners_4[:2]).any():
        return None
    return corners_4.astype(np.float64)


def box_mask(box_4: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """float64 (size, size): the share of each pixel that the box covers, 0 to 1."""
    edges = np.arange(size + 1, dtype=np.float64)

    def covered(low: float, high: float) -> NDArray[np.float64]:
        return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, 1)

    return np.outer(covered(box_4[1], box_4[3]), covered(box_4[0], box_4[2]))


UNCHANGED = 0.5
"""Mean rank correlation from which maps are reported as hardly changed by training."""


def randomised(trained: TrainedModel, number: int) -> FineGrainedClassifier:
    """The same network with every tensor reinitialized, pretrained ones too.

    Layers that start at zero (a linear head, gates) are drawn from a Gaussian with the standard
    deviation of the trained tensor; at zero, the map would be empty.

    Args:
        trained: The trained model.
        number: Number of the draw, from 0.
    """
    recipe = trained.recipe
    settings = recipe.model.model_copy(update={"weights": "none"})
    seed = derive_seed(recipe.seed, "explain", "randomised", number)
    if settings.head in ("subspace", "whitened"):
        # Its directions are computed from the pretrained classifier, so the weights stay.
        settings = recipe.model
    model = build_classifier(settings, len(trained.class_names), recipe.data.image_size, seed)
    model.adapt(trained.model.input)
    generator = torch.Generator().manual_seed(seed)
    learnt = dict(trained.model.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not bool(parameter.any()):
                width = float(learnt[name].std()) if learnt[name].numel() > 1 else 1.0
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn * (width if width > 0 else 0.05))
    return model.eval()


def centre_map(size: int) -> NDArray[np.float32]:
    """float32 (size, size): a centered Gaussian, its standard deviation a quarter of the side."""
    at = (np.arange(size) + 0.5 - size / 2) / (size / 4)
    bell = np.exp(-(at**2) / 2)
    return np.outer(bell, bell).astype(np.float32)


def rank_correlation(one_HW: NDArray[np.float32], two_HW: NDArray[np.float32]) -> float:
    """Spearman's rank correlation of two maps, -1 to 1; 0 if one is constant."""
    ranks = [rankdata(m_HW, axis=None) for m_HW in (one_HW, two_HW)]
    spreads = [float(r.std()) for r in ranks]
    if min(spreads) == 0:
        return 0.0
    one, two = ((r - r.mean()) / s for r, s in zip(ranks, spreads, strict=True))
    return float((one * two).mean())


TOLERANCE = 15 / 224
"""Tolerance as a share of the square's side: 15 pixels of 224."""

_BATCH = 32


@dataclass
class Tally:
    """Scores of one kind of map.

    Attributes:
        hits: For each picture with a visible distinguishing part: whether one was hit.
        part_hits: For each picture with any visible part: whether one was hit.
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
    """Settings of a game.

    Attributes:
        method: See :class:`ClassMaps`.
        stage: See :class:`ClassMaps`.
        tolerance: Share of the square's side by which a map may miss, 0 to 0.5.
        contrast: Map the true class against its runner-up rather than alone.
        draws: Number of random networks, at least 1.
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
    """Play the game on every labeled picture of a table.

    Args:
        trained: The model.
        table: N examples with parts, of the model's classes.
        game: The settings.
        tell: Called with the progress.

    Returns:
        ``trained``, ``random_weights`` (mean over draws) and ``centre``, each with ``hit_rate``,
        ``any_part_hit_rate`` and ``energy_in_box``; ``ratio_centre`` and ``ratio_random`` of the
        hit rates; ``rank_correlation`` between trained and random maps, and
        ``unchanged_by_randomising`` if it is 0.5 or more; ``pictures``, ``scored`` and the
        settings.

    Raises:
        DataError: if the table has no parts or attributes, or has other classes.
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
    """The highest-scoring wrong class of each picture."""
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
    """bool (P,): visible parts within the tolerance of the map's maximum.

    An all-zero map points at nothing. If several pixels share the maximum, their mean position
    counts (a saturated patch points at its middle).
    """
    top = float(map_HW.max())
    if top <= 0:
        return np.zeros(len(parts_P3), dtype=np.bool_)
    rows, columns = np.nonzero(map_HW >= top)
    place = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
    far_P = np.linalg.norm(parts_P3[:, :2] - place, axis=1)
    return (far_P <= tolerance * map_HW.shape[0]) & (parts_P3[:, 2] > 0)


def energy_in_box(map_HW: NDArray[np.float32], box_4: NDArray[np.float64]) -> float:
    """The share of a map's sum inside a box, 0 to 1; 0 for an all-zero map."""
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
        # Adebayo et al.: such maps do not depend on what was learned.
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
