"""A site's part of a sum: its value in steps, its share of the noise, its masks; the opening."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.privacy.noise import discrete_gaussian, make_grid
from fgvc_core.secure.masks import Stream, add_masks, noise_seed, pair_seed
from fgvc_core.secure.ring import Bits, bits_for, from_ring, most_steps, to_ring, to_steps, word
from fgvc_core.secure.view import View

NAME = "masked"
"""Name of the one tensor that a site sends."""


@dataclass(frozen=True)
class Scale:
    """Steps and noise of one sum; every site and the coordinator compute the same.

    Attributes:
        step: Size of a step.
        levels: Of each site's draws; 0 adds no noise.
        bits: Of the ring.
    """

    step: float
    levels: int
    bits: Bits

    @classmethod
    def of_noise(cls, bound: float, size: int, noise_multiplier: float, adding: int) -> "Scale":
        """Scale of a sum under differential privacy.

        Args:
            bound: Largest norm of one unit's contribution.
            size: Number of values.
            noise_multiplier: Of the noise of ``adding`` sites together.
            adding: How many sites of the sum add up to the full noise: all but the colluding.
        """
        grid = make_grid(bound, size, noise_multiplier, adding)
        return cls(grid.step, grid.levels, bits_for(size, grid.levels))


def seeds_of(view: View, own: str, secret: bytes) -> dict[str, bytes]:
    """Other site -> the seed shared with it in a view.

    Raises:
        PeerError: if a site's key is a point of small order; names it.
    """
    return {
        other: pair_seed(secret, own, key, other, view.digest)
        for other, key in view.keys(own).items()
    }


def masked_part(
    value: NDArray[np.float64],
    scale: Scale,
    view: View,
    own: str,
    secret: bytes,
    noise: bytes,
) -> NDArray[Any]:
    """What a site sends: its value and its share of the noise, under the masks of one view.

    A function of its arguments alone: the same view gets the same words again.

    Args:
        value: Any shape, finite.
        scale: Of the sum.
        view: The sites of the sum, this one among them.
        own: Name of this site.
        secret: Private X25519 key of the ready text.
        noise: Key of this site's noise.

    Returns:
        uint32 or uint64 (N,).

    Raises:
        PeerError: if a site's key is a point of small order.
    """
    steps = to_steps(value, scale.step, most_steps(scale.bits, scale.levels))
    if scale.levels:
        stream = Stream(noise_seed(noise, view.digest))
        steps += discrete_gaussian(len(steps), scale.levels, stream.words)
    return add_masks(to_ring(steps, scale.bits), own, seeds_of(view, own, secret))


def opened(parts: Iterable[NDArray[Any]], scale: Scale, size: int) -> NDArray[np.float64]:
    """float64 (N,): the sum over all sites of a view, once every one of them has sent its part.

    Args:
        parts: Masked parts; each is added as it comes.
        scale: Of the sum.
        size: N.
    """
    total: NDArray[Any] = np.zeros(size, word(scale.bits))
    for part in parts:
        total += part
    return from_ring(total, scale.step)
