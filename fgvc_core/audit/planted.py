"""Planted units (canaries), whose gradient or vector is known before anything is released."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.audit.settings import AuditSettings
from fgvc_core.privacy.gradients import LossOf, size_of
from fgvc_core.privacy.sampling import fresh_seed
from fgvc_core.seeds import derive_seed

SPREAD = 32
"""Largest number of coordinates of one spread gradient."""


@dataclass(frozen=True)
class Observed:
    """Scores of an attacked run, with the ground truth.

    Attributes:
        scores_M: Score of each canary; high if the attacker believes that it is in the data.
        included_M: Whether it is.
        unit_scores_U: Score of each of the site's own units.
        unit_included_U: Whether each is in the data.
        engine: Name of the engine that computed the releases.
        releases: Number of releases seen.
        wanted: Number of canaries requested.
    """

    scores_M: NDArray[np.float64]
    included_M: NDArray[np.bool_]
    unit_scores_U: NDArray[np.float64]
    unit_included_U: NDArray[np.bool_]
    engine: str
    releases: int
    wanted: int


class GradientCanaries(Protocol):
    """Canaries of gradient steps, from the attacker's view."""

    def along(
        self, values_D: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(M,) and (M,): inner products with the unit directions, and lengths before clipping.

        Both belong to the current model; ``values_D`` is a sum of gradients.
        """
        ...


def audit_generator(settings: AuditSettings) -> np.random.Generator:
    """Generator of coins and directions, seeded with ``audit.seed`` if it is set."""
    seed = fresh_seed() if settings.seed is None else settings.seed
    return np.random.default_rng(derive_seed(seed, "audit"))


def fair_coins(count: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """bool (count,), each True with probability 1/2."""
    return generator.integers(0, 2, size=count).astype(np.bool_)


class PlantedGradients:
    """Units whose loss is linear in the model, which makes their gradient known and constant.

    Their losses pass through the loop over units as a picture's do: automatic differentiation,
    clipping, the sum. No two canaries share a coordinate.

    Args:
        parameters: The trainable parameters, in order.
        count: M, at most the number of coordinates.
        kind: See :class:`AuditSettings`.
        length: Norm of each gradient before clipping.
        generator: Draws the signs.
    """

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        count: int,
        kind: Literal["spread", "coordinate"],
        length: float,
        generator: np.random.Generator,
    ) -> None:
        size = size_of(parameters)
        each = 1 if kind == "coordinate" else min(size // count, SPREAD)
        # Spread evenly over the whole model: a canary has coordinates in early and late layers.
        places = np.arange(count * each, dtype=np.int64) * size // (count * each)
        self._parameters = parameters
        self._length = length
        self._places_MB = places.reshape(each, count).T
        self._directions_MB = generator.choice([-1.0, 1.0], size=(count, each)) / np.sqrt(each)
        self._starts = np.cumsum([0, *(p.numel() for p in parameters)])

    def chosen(self, included_M: NDArray[np.bool_]) -> LossOf:
        """Losses of the included canaries, numbered from 0."""
        which = np.flatnonzero(included_M)
        parts = [self._parts(int(number)) for number in which]

        def losses(numbers: torch.Tensor) -> torch.Tensor:
            return torch.stack([self._loss(parts[number]) for number in numbers.tolist()])

        return losses

    def _parts(self, number: int) -> list[tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor]]:
        """For each parameter that a canary touches: positions in it and their weights."""
        places_B, weights_B = self._places_MB[number], self._directions_MB[number] * self._length
        owners_B = np.searchsorted(self._starts, places_B, side="right") - 1
        parts = []
        for owner in np.unique(owners_B):
            parameter, at = self._parameters[owner], owners_B == owner
            places = torch.from_numpy(places_B[at] - self._starts[owner]).to(parameter.device)
            parts.append((parameter, places, torch.from_numpy(weights_B[at]).to(parameter)))
        return parts

    def _loss(
        self, parts: list[tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        # Use only the parameters that the canary touches; the loop then skips the others.
        terms = [(p.reshape(-1)[places] * weights).sum() for p, places, weights in parts]
        return torch.stack(terms).sum()

    def along(
        self, values_D: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See :class:`GradientCanaries`."""
        products_M = (values_D[self._places_MB] * self._directions_MB).sum(axis=1)
        return products_M, np.full(len(products_M), self._length)
