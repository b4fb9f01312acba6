"""Types of the values in messages, with bounds: finite, and of limited length.

JSON permits ``Infinity`` and integers of thousands of digits, which overflow in unexpected places
when they are added up, compared or shown. Every number in a signed body has one of these types.
Bounds that depend on a run (``federation.max_weight``) are checked where the run is known.
"""

import math
from typing import Annotated

from pydantic import Field

MOST_COUNTED = 1_000_000_000
MOST_ROUNDS = 10_000_000
MOST_LOSS = 1e9
MOST_LOSS_SUM = MOST_LOSS * MOST_COUNTED
MOST_COST = 1e9
MOST_NOISY = 1e15
"""Bound of a noisy count's magnitude, above the noise of any recipe."""

Count = Annotated[int, Field(ge=0, le=MOST_COUNTED)]
"""Number of pictures, subjects, units, or ledger entries."""

RoundNumber = Annotated[int, Field(ge=0, le=MOST_ROUNDS)]

Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]

Loss = Annotated[float, Field(ge=-MOST_LOSS, le=MOST_LOSS, allow_inf_nan=False)]
"""A mean loss in nats."""

LossSum = Annotated[float, Field(ge=0.0, le=MOST_LOSS_SUM, allow_inf_nan=False)]

Cost = Annotated[float, Field(ge=0.0, le=MOST_COST, allow_inf_nan=False)]
"""An epsilon; above 100 it has no meaning, but may still be stated."""

Probability = Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)]

EventValue = (
    Annotated[str, Field(max_length=32)]
    | Annotated[float, Field(ge=0.0, le=1e15, allow_inf_nan=False)]
    | Count
)
Event = Annotated[
    dict[Annotated[str, Field(max_length=32)], EventValue], Field(min_length=1, max_length=8)
]
"""A privacy event as plain values."""

Tensors = Annotated[
    dict[Annotated[str, Field(max_length=300)], Annotated[str, Field(max_length=64)]],
    Field(max_length=20_000),
]
"""Name -> digest."""

MOST_CLASSES = 100_000
"""Most classes of a recipe."""

ClassNames = Annotated[
    tuple[Annotated[str, Field(max_length=500)], ...], Field(max_length=MOST_CLASSES, strict=False)
]


def stated_loss(mean: float) -> float | None:
    """A mean loss clipped to the range of messages; None for NaN.

    >>> stated_loss(1.7e308), stated_loss(float("nan"))
    (1000000000.0, None)
    """
    return None if math.isnan(mean) else min(max(mean, -MOST_LOSS), MOST_LOSS)


def stated_sum(total: float) -> float:
    """A sum of losses clipped to the range of messages; the largest value for NaN.

    >>> stated_sum(2.5)
    2.5
    """
    return MOST_LOSS_SUM if math.isnan(total) else min(max(total, 0.0), MOST_LOSS_SUM)
