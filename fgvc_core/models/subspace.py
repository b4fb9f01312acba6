"""Public subspace: principal directions of a pre-trained classifier's class weights.

The rows of its last layer show how the classes it knows differ. Their principal directions,
those of related classes first, are where look-alikes differ. Finding them needs no private
picture. Of several backbones side by side the rows are joined, each in its unit: a class that they
all know is one row, so that the directions are joint ones, and no more than those of one backbone.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from fgvc_core.errors import ConfigurationError
from fgvc_core.models.backbones import PRESETS
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.weights import packaged_state, read_state


def public_directions(settings: ModelSettings, channels: int) -> torch.Tensor:
    """float32 (P, D), orthonormal rows.

    The directions of the related classes come first. If ``model.directions`` exceeds their
    span, those of all classes follow, orthogonal to the first. With ``model.until`` they are the
    channels themselves.

    Args:
        settings: ``[model]``, with pre-trained weights.
        channels: D.

    Raises:
        ConfigurationError: if the weights have no classifier, or too few directions.
    """
    if settings.until:
        # The classifier's rows are of the last map; of an earlier one each channel is a direction.
        return torch.eye(channels)
    directions = _directions(
        settings.networks, settings.weights, settings.related_classes, settings.directions
    )
    if directions.shape[1] != channels:
        raise ConfigurationError(
            f"The classifier of model.weights = '{settings.weights}' reads vectors of "
            f"{directions.shape[1]}, the backbone gives {channels}.",
            remedy="Set model.head to linear or cosine.",
        )
    return torch.from_numpy(directions.astype(np.float32))


@lru_cache(maxsize=4)
def _directions(
    backbones: tuple[str, ...], weights: str, related: tuple[str, ...], count: int
) -> NDArray[np.float64]:
    rows_CD = _joined_rows([classifier_rows(name, weights) for name in backbones])
    found_PD = np.zeros((0, rows_CD.shape[1]))
    if related:
        found_PD = _principal(rows_CD[_numbers(related, len(rows_CD))])[:count]
    if len(found_PD) < count:
        centred_CD = rows_CD - rows_CD.mean(axis=0)
        rest_CD = centred_CD - centred_CD @ found_PD.T @ found_PD
        found_PD = np.concatenate([found_PD, _principal(rest_CD)[: count - len(found_PD)]])
    if len(found_PD) < count:
        raise ConfigurationError(
            f"model.directions = {count}, but the classifier has only {len(found_PD)}.",
            remedy=f"Set it to at most {len(found_PD)}.",
        )
    return found_PD


def _principal(rows_CD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Right singular vectors of the centered rows, strongest first, with fixed signs."""
    centred_CD = rows_CD - rows_CD.mean(axis=0)
    _, strengths, axes = np.linalg.svd(centred_CD, full_matrices=False)
    axes = axes[strengths > 1e-6 * strengths[0]]
    # The sign of a singular vector is arbitrary; all sites must get the same one.
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    found: NDArray[np.float64] = axes * signs[:, None]
    return found


def _numbers(related: tuple[str, ...], classes: int) -> list[int]:
    numbers: list[int] = []
    for text in related:
        first, _, last = text.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    if max(numbers) >= classes:
        raise ConfigurationError(
            f"model.related_classes names class {max(numbers)}; the pre-trained classifier has "
            f"0 to {classes - 1}.",
            remedy="Name classes of the data set that the weights were trained on.",
        )
    return sorted(set(numbers))


def _joined_rows(rows: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """float64 (C, sum of D): rows that give the sum of logits on vectors in their units."""
    if len(rows) == 1:
        return rows[0]
    if len({len(rows_CD) for rows_CD in rows}) > 1:
        raise ConfigurationError(
            f"The classifiers of model.backbones know {[len(rows_CD) for rows_CD in rows]} "
            "classes.",
            why="Their rows are joined class by class.",
            remedy="Name backbones whose weights were trained on the same classes.",
        )
    return np.concatenate([rows_CD / row_unit(rows_CD) for rows_CD in rows], axis=1)


def row_unit(rows_CD: NDArray[np.float64]) -> float:
    """Root mean square length of a classifier's rows: the unit of its backbone's vectors.

    Dividing rows by it and multiplying vectors by it leaves the logits as they are.
    """
    return float(np.sqrt((rows_CD**2).sum(axis=1).mean()))


@lru_cache(maxsize=4)
def classifier_rows(backbone: str, weights: str) -> NDArray[np.float64]:
    """float64 (C, D), the pre-trained classifier's weight; not to be changed.

    Raises:
        ConfigurationError: if the weights have no classifier.
    """
    if weights == "none" or backbone in PRESETS:
        raise ConfigurationError(
            "model.head = 'subspace' needs pre-trained weights with their classifier.",
            why="Its directions are those of the pre-trained classifier.",
            remedy="Set model.weights to package, hub or a file with the classifier in it, or "
            "another head.",
        )
    name = f"{timm.get_pretrained_cfg_value(backbone.split('.')[0], 'classifier')}.weight"
    if weights == "package":
        state = packaged_state(backbone, timm.create_model(backbone).state_dict())
    elif weights == "hub":
        state = timm.create_model(backbone, pretrained=True).state_dict()
    else:
        state = read_state(Path(weights))
    if name not in state or state[name].ndim < 2:
        raise ConfigurationError(
            f"model.weights = '{weights}' holds no classifier '{name}'.",
            remedy="Take the weights with their classifier, or set model.head to linear.",
        )
    rows: NDArray[np.float64] = state[name].flatten(1).double().numpy()
    return rows
