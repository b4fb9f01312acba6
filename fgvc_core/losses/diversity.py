"""Learnt parts have to look at different places.

After the diversity term of Zheng et al. 2017 (MA-CNN, section 3.2; see
:mod:`fgvc_core.models.parts`), with the cosine between maps in place of their maximum: the mean
over all pairs of a picture's maps, 0 where no two share a position, 1 where all are the same.
Each picture's own, so that it couples no examples. Cost: K^2 H W. A warning: with a large weight
the maps split the background among them; with none they all go to one place.
"""

import torch
from torch.nn import functional as F

from fgvc_core.errors import ConfigurationError
from fgvc_core.losses.base import Answers, Loss


class PartDiversity(Loss):
    """The mean cosine between the maps of a picture's parts."""

    def each(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Loss`.

        Raises:
            ConfigurationError: if the model has no maps of parts, or does not train them.
        """
        maps_NKHW = answers.part_maps_NKHW
        if maps_NKHW is None:
            raise ConfigurationError(
                "loss.diversity > 0, but there are no maps of parts that train.",
                why="It keeps learnt parts apart.",
                remedy="Set model.pooling = 'parts' and model.train to all or a stage, or "
                "loss.diversity = 0.",
            )
        return overlap(maps_NKHW)


def overlap(maps_NKHW: torch.Tensor) -> torch.Tensor:
    """(N,), 0 to 1: the mean cosine over the pairs of K maps of no negative value; K = 1: 0."""
    parts = maps_NKHW.shape[1]
    if parts < 2:
        return maps_NKHW.new_zeros(len(maps_NKHW)) + 0.0 * maps_NKHW.sum(dim=(1, 2, 3))
    unit_NKP = F.normalize(maps_NKHW.flatten(2), dim=2)
    # The sum over all pairs, both ways and each with itself, is the square of the sum.
    together_N = unit_NKP.sum(dim=1).square().sum(dim=1)
    own_N = unit_NKP.square().sum(dim=(1, 2))
    return (together_N - own_N) / (parts * (parts - 1))
