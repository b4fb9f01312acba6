"""Which attention, and where in a backbone it is put."""

from collections.abc import Callable

import torch
from torch import nn

from fgvc_core.errors import ConfigurationError, nearest
from fgvc_core.models.backbones import Backbone, TimmBackbone
from fgvc_core.models.channel_gates import EfficientChannelGate, SqueezeExcitation
from fgvc_core.models.relations import DualAttention, NonLocal
from fgvc_core.models.spatial import SpatialAttention


def _cbam(channels: int) -> nn.Module:
    return nn.Sequential(SqueezeExcitation(channels, maxima=True), SpatialAttention())


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "spatial": lambda channels: SpatialAttention(),
    "se": SqueezeExcitation,
    "eca": EfficientChannelGate,
    "cbam": _cbam,
    "nonlocal": NonLocal,
    "dual": DualAttention,
}
"""Name -> a module for so many channels: (N, C, H, W) to the same, the identity at first."""


class Attended(nn.Module):
    """A stage, and the attention that looks at what it gives.

    Args:
        stage: Anything that gives a map.
        attention: A map to a map of the same shape.
    """

    def __init__(self, stage: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.stage = stage
        self.attention = attention

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """As the stage, then the attention."""
        return self.attention(self.stage(map_NCHW))


def insert_attention(backbone: Backbone, kind: str, stages: tuple[str, ...], size: int) -> None:
    """Put attention behind stages of a convolutional backbone, in place.

    Args:
        backbone: Its weights are loaded already: names inside those stages may change.
        kind: One of ``KINDS``.
        stages: Names of stages, each once.
        size: Side of the pictures, in pixels.

    Raises:
        ConfigurationError: for an unknown stage, or one that gives no map of channels.
    """
    root = backbone.model if isinstance(backbone, TimmBackbone) else backbone
    for name in stages:
        if name not in backbone.stage_names:
            choices = list(backbone.stage_names)
            raise ConfigurationError(
                f"model.attention_after names '{name}', which is no stage of this backbone.",
                remedy=f"{nearest(name, choices)} Choices: {', '.join(choices)}.".strip(),
            )
        stage = root.get_submodule(name)
        attention = KINDS[kind](_channels(backbone, stage, name, size))
        if isinstance(stage, nn.Sequential):
            # Its other members keep their names.
            stage.append(attention)
            continue
        parent, _, own = name.rpartition(".")
        owner = root.get_submodule(parent) if parent else root
        setattr(owner, own, Attended(stage, attention))
        # What the last map does not depend on is known by names; some lie inside the stage.
        if isinstance(backbone, TimmBackbone):
            before, after = f"model.{name}.", f"model.{name}.stage."
            backbone.idle = frozenset(
                after + idle.removeprefix(before) if idle.startswith(before) else idle
                for idle in backbone.idle
            )


def _channels(backbone: Backbone, stage: nn.Module, name: str, size: int) -> int:
    """How many channels a stage's map has, from one black square."""
    seen: list[object] = []
    handle = stage.register_forward_hook(lambda module, given, found: seen.append(found))
    try:
        with torch.inference_mode():
            backbone.eval()(torch.zeros(1, 3, size, size))
    finally:
        handle.remove()
    last_is_channels = getattr(getattr(backbone, "model", None), "output_fmt", "NCHW") == "NHWC"
    found = seen[0] if len(seen) == 1 else None
    if not isinstance(found, torch.Tensor) or found.ndim != 4 or last_is_channels:
        raise ConfigurationError(
            f"model.attention_after: stage '{name}' gives no map of channels.",
            why="Attention of this kind is put behind convolutional stages.",
            remedy="Name a convolutional stage, or leave model.attention_after empty.",
        )
    return int(found.shape[1])
