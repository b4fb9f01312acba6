"""Several frozen backbones side by side: their maps, each in its public unit, channel on channel.

Networks that were trained alike err differently, so that a discriminant of their joined vectors
beats that of each (docs/learner.md has what it gave). Every later part sees one map of more
channels: pooling, further looks (the closer one looks where the maps *together* are strong), class
maps and export are those of a single backbone.

The unit of a backbone is the root mean square of its pre-trained classifier's rows. Networks that
were trained with the same loss have logits of one size, so that values are small where rows are
long. No picture is needed for it, so it is public under differential privacy too.
"""

import torch
from torch import nn

from fgvc_core.errors import ConfigurationError
from fgvc_core.models.backbones import Backbone, make_backbone
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.subspace import classifier_rows, row_unit
from fgvc_core.models.weights import InputSpec


class JoinedBackbone(nn.Module):
    """Backbones that read the same square and give maps of the same places.

    Args:
        members: At least two.
        units: The factor of each one's map, above 0.
        size: Side of the squares, in pixels.

    Raises:
        ConfigurationError: if their maps have different sides.
    """

    stage_names: tuple[str, ...] = ()
    idle: frozenset[str] = frozenset()

    def __init__(self, members: list[Backbone], units: list[float], size: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.units = units
        self.out_channels = sum(member.out_channels for member in members)
        with torch.inference_mode():
            square_NCHW = torch.zeros(1, 3, size, size)
            sides = [tuple(member.eval()(square_NCHW).shape[2:]) for member in members]
        if len(set(sides)) > 1:
            raise ConfigurationError(
                f"model.backbones give maps of {' and '.join(f'{h} x {w}' for h, w in sides)} "
                f"places for squares of {size} px.",
                why="Their maps are joined place by place.",
                remedy="Name backbones of one family, or another data.image_size.",
            )

    def extra_repr(self) -> str:
        """The units, which a cached feature depends on."""
        return f"units={self.units}"

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Map (N, 3, H, W) to (N, sum of channels, h, w)."""
        pairs = zip(self.members, self.units, strict=True)
        return torch.cat([member(images_NCHW) * unit for member, unit in pairs], dim=1)


def make_joined(settings: ModelSettings, size: int) -> tuple[JoinedBackbone, InputSpec]:
    """Build the backbones of ``model.backbones``, and the preprocessing, which is the first's.

    Args:
        settings: ``[model]`` with several backbones.
        size: Side of the squares, in pixels.

    Raises:
        ConfigurationError: for an unknown name, missing weights, or backbones that expect
            other colors or give maps of different sides.
    """
    built = [make_backbone(name, settings.weights, size) for name in settings.backbones]
    first = built[0][1]
    for name, (_, spec) in zip(settings.backbones, built, strict=True):
        if (spec.mean, spec.std) != (first.mean, first.std):
            raise ConfigurationError(
                f"model.backbones: '{name}' was trained on colors of mean {spec.mean} and "
                f"deviation {spec.std}, '{settings.backbones[0]}' on {first.mean} and {first.std}.",
                why="They read the same square.",
                remedy="Name backbones that were trained alike.",
            )
    units = [1.0] * len(built)
    if settings.weights != "none":
        units = [row_unit(classifier_rows(name, settings.weights)) for name in settings.backbones]
    return JoinedBackbone([backbone for backbone, _ in built], units, size), first


AnyBackbone = Backbone | JoinedBackbone
