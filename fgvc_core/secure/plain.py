"""Trained models and scores without noise, as the values of a masked sum.

A site sends the change of the model, weighed by itself, with its weight and what it says of its
training and of the received model beside it: only the sums of all of them can be read. Changes are
cut to ``secure.range``, and the cuts are counted. Everything is a whole number of steps, so the
sum is exact and does not depend on the order of the sites; only the rounding of each site's values
to its steps, half a step at most, differs from a mean without masks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import DataError, PeerError
from fgvc_core.secure.part import Scale
from fgvc_core.secure.ring import bits_for, most_steps
from fgvc_core.wire.arrays import TensorSpec, first_not_finite

Tensors = Mapping[str, NDArray[np.float32]]

LOSS_STEPS = 256
"""Losses of validation pictures are added up in this part of a nat."""

MOST_LOSS = 100.0
"""Largest mean loss of training that is told, in nats; a larger one is cut to it."""

SCORES = 3
FIGURES = 3 + SCORES
"""Values beside the change: weight, weighed loss, cuts; pictures, right ones, sum of losses."""


@dataclass(frozen=True)
class Figures:
    """What is told beside a change of the model: of one site, or summed over all.

    Attributes:
        weight: Weight, 0 to 1 for each site.
        loss: Weight times the mean training loss, in nats.
        cut: Values that were cut to ``secure.range``.
        examples: Validation pictures.
        correct: Of them, those that the received model named right.
        loss_sum: Sum of its losses on them, in nats.
    """

    weight: float = 0.0
    loss: float = 0.0
    cut: int = 0
    examples: int = 0
    correct: int = 0
    loss_sum: float = 0.0


def exact_scale(size: int) -> Scale:
    """Scale of a sum of ``size`` values between -1 and 1, without noise."""
    bits = bits_for(size, 0)
    return Scale(1.0 / most_steps(bits, 0), 0, bits)


def size_of_update(specs: Mapping[str, TensorSpec]) -> int:
    """Number of values that a site sends of a model with these tensors."""
    return sum(spec.size for spec in specs.values()) + FIGURES


def update_as_value(
    sent: Tensors, trained: Tensors, figures: Figures, most_change: float
) -> NDArray[np.float64]:
    """float64 (N + FIGURES,): the weighed change of a model and the figures, within -1 to 1.

    Args:
        sent: The received model.
        trained: The same tensors after training.
        figures: Of the site; ``cut`` is counted here.
        most_change: ``secure.range``.

    Raises:
        DataError: if a trained value is not finite.
    """
    broken = first_not_finite(dict(trained))
    if broken is not None:
        raise DataError(
            f"Training has made '{broken}' not finite.",
            why="One such value would spoil the sum of all sites.",
            remedy="Lower train.lr, or look for unusual pictures at this site.",
        )
    value_N = np.empty(sum(array.size for array in trained.values()) + FIGURES)
    step = exact_scale(value_N.size).step
    # In whole steps, so that the changes are weighed by what is told.
    weight = round(figures.weight / step) * step
    at = cut = 0
    for name in sorted(trained):
        part = value_N[at : at + trained[name].size]
        np.subtract(trained[name].reshape(-1), sent[name].reshape(-1), out=part, dtype=np.float64)
        cut += int(np.count_nonzero(np.abs(part) > most_change))
        np.clip(part, -most_change, most_change, out=part)
        part *= weight / most_change
        at += part.size
    loss = min(max(figures.loss / MOST_LOSS, -1.0), 1.0)
    value_N[at : at + 3] = weight, loss, cut * step
    value_N[at + 3 :] = scores_as_value(figures, step)
    return value_N


def scores_as_value(figures: Figures, step: float) -> NDArray[np.float64]:
    """float64 (SCORES,): the scores alone; counts are whole steps, and so exact."""
    losses = round(figures.loss_sum * LOSS_STEPS)
    return np.array([figures.examples, figures.correct, losses], np.float64) * step


def read_update(
    values_N: NDArray[np.float64],
    sent: Tensors,
    most_change: float,
    members: int,
) -> tuple[dict[str, NDArray[np.float32]], Figures]:
    """The mean model of an opened sum, and the summed figures.

    Args:
        values_N: float64 (N + FIGURES,).
        sent: The model that was sent.
        most_change: ``secure.range``.
        members: Number of sites in the sum.

    Raises:
        PeerError: if no sum over that many honest sites is so.
    """
    step = exact_scale(values_N.size).step
    weight, loss, cut = values_N[-FIGURES : -FIGURES + 3].tolist()
    # Each site's weight is rounded to a step, as its changes are.
    slack = members * step
    if not 0 < weight <= members + slack:
        raise PeerError(f"The sites of the sum weigh {weight:.6g} together; each at most 1.")
    change_N = values_N[:-FIGURES]
    largest = float(np.abs(change_N).max(initial=0.0))
    if largest > weight + slack:
        raise PeerError(
            f"A value of the sum has changed by {largest / weight * most_change:.4g} on average; "
            f"secure.range = {most_change:g} is possible."
        )
    scores = read_scores(values_N[-SCORES:], step, members)
    figures = Figures(weight, loss * MOST_LOSS, round(cut / step), *scores)
    return moved(sent, change_N * (most_change / weight)), figures


def moved(model: Tensors, change_N: NDArray[np.float64]) -> dict[str, NDArray[np.float32]]:
    """A model after a change of all its values, which are in the order of its tensors' names."""
    ends = np.cumsum([model[name].size for name in sorted(model)])
    parts = dict(zip(sorted(model), np.split(change_N, ends[:-1]), strict=True))
    return {
        name: (array.astype(np.float64) + parts[name].reshape(array.shape)).astype(np.float32)
        for name, array in model.items()
    }


def read_scores(values_3: NDArray[np.float64], step: float, members: int) -> tuple[int, int, float]:
    """Pictures, right ones and the sum of their losses, over all sites of an opened sum.

    Raises:
        PeerError: if they are impossible.
    """
    examples, correct, losses = (round(value / step) for value in values_3.tolist())
    if not 0 <= correct <= examples:
        raise PeerError(
            f"Of {examples} validation pictures of {members} sites {correct} are right."
        )
    return examples, correct, losses / LOSS_STEPS
