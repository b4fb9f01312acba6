"""Building of one model from ``[model]``, with attention inserted behind backbone stages."""

from dataclasses import replace

import torch
from torch import nn

from fgvc_core.components import ATTENTIONS
from fgvc_core.errors import ConfigurationError, nearest
from fgvc_core.models.backbones import TimmBackbone, make_backbone
from fgvc_core.models.classifier import FineGrainedClassifier, SpatialTransformer
from fgvc_core.models.heads import make_head
from fgvc_core.models.joined import AnyBackbone, make_joined
from fgvc_core.models.pooling import Scaling, make_pooling
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.tokens import TokenSelection
from fgvc_core.models.trainable import apply_policy, select_trainable


def build_classifier(
    settings: ModelSettings, num_classes: int, image_size: int, seed: int
) -> FineGrainedClassifier:
    """Build a classifier; equal arguments give equal initial tensors on every machine.

    Args:
        settings: ``[model]``.
        num_classes: K, at least 1.
        image_size: Side of the squares, in pixels.
        seed: Seed of all random initialization; the global generator's state is restored.

    Raises:
        ConfigurationError: for an unknown backbone or stage, or wrong weights.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs' generators, which are not forked here.
        torch.default_generator.manual_seed(seed)
        backbone: AnyBackbone
        if settings.backbones:
            backbone, spec = make_joined(settings, image_size)
        else:
            backbone, spec = make_backbone(settings.backbone, settings.weights, image_size)
        if settings.until:
            _end(backbone, settings, image_size)
        if settings.crop:
            spec = replace(spec, crop=settings.crop)
        apply_policy(backbone, settings.norm, settings.title)
        if settings.norm == "standardised" and isinstance(backbone, TimmBackbone):
            # The policy renamed tensors, so find again which ones the map depends on.
            backbone.probe(image_size)
        if settings.token_selection:
            _select_tokens(backbone, settings.backbone)
        attention: nn.Module = nn.Identity()
        if settings.attention_after:
            insert_attention(backbone, settings, image_size)
        else:
            attention = make_attention(settings, backbone.out_channels)
        before = SpatialTransformer() if settings.spatial_transformer else None
        pooling = make_pooling(settings, backbone.out_channels)
        head = make_head(settings, pooling.out_dim, num_classes)
    model = FineGrainedClassifier(
        backbone,
        attention,
        pooling,
        Scaling(settings.scaling),
        settings.dropout,
        head,
        spec,
        settings.mirrored,
        before,
        settings.closer,
        settings.middle,
    )
    model.norm = settings.norm
    model.fixed_statistics = settings.norm == "frozen"
    select_trainable(model, settings.train)
    return model.to(memory_format=torch.channels_last).eval()


def make_attention(settings: ModelSettings, channels: int) -> nn.Module:
    """Build the attention named by ``model.attention``: (N, C, H, W) to the same shape.

    Raises:
        ConfigurationError: if a component is broken.
    """
    component = ATTENTIONS.get(settings.attention)
    made: nn.Module = component.make(channels, settings.settings_of(component))
    return made


def _end(backbone: AnyBackbone, settings: ModelSettings, size: int) -> None:
    if not isinstance(backbone, TimmBackbone):
        raise ConfigurationError(
            f"model.until = '{settings.until}', but '{settings.title}' is none of timm's models.",
            why="Our own networks are trained from random weights, all of them.",
            remedy="Leave model.until out, or name a timm model with pre-trained weights.",
        )
    backbone.end_at(settings.until, size)


def _select_tokens(backbone: nn.Module, name: str) -> None:
    model = backbone.model if isinstance(backbone, TimmBackbone) else backbone
    selection = TokenSelection(model, name)
    if isinstance(backbone, TimmBackbone):
        backbone.selection = selection


class Attended(nn.Module):
    """A stage followed by attention.

    Args:
        stage: Any module that returns a map.
        attention: Maps a map to one of the same shape.
    """

    def __init__(self, stage: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.stage = stage
        self.attention = attention

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        return self.attention(self.stage(map_NCHW))


def insert_attention(backbone: AnyBackbone, settings: ModelSettings, size: int) -> None:
    """Insert attention behind stages of a convolutional backbone, in place.

    Args:
        backbone: The backbone, with weights loaded: names inside those stages may change.
        settings: ``[model]``, with the attention and the stages.
        size: Side of the pictures, in pixels.

    Raises:
        ConfigurationError: for an unknown stage, or one that does not return a feature map.
    """
    root = backbone.model if isinstance(backbone, TimmBackbone) else backbone
    for name in settings.attention_after:
        if name not in backbone.stage_names:
            choices = list(backbone.stage_names)
            raise ConfigurationError(
                f"model.attention_after names '{name}', which is no stage of this backbone.",
                remedy=f"{nearest(name, choices)} Choices: {', '.join(choices)}.".strip(),
            )
        stage = root.get_submodule(name)
        attention = make_attention(settings, _channels(backbone, stage, name, size))
        if isinstance(stage, nn.Sequential):
            # Appending keeps the names of the other members.
            stage.append(attention)
            continue
        parent, _, own = name.rpartition(".")
        owner = root.get_submodule(parent) if parent else root
        setattr(owner, own, Attended(stage, attention))
        # Idle parameters are known by name, and names inside the stage have changed.
        if isinstance(backbone, TimmBackbone):
            before, after = f"model.{name}.", f"model.{name}.stage."
            backbone.idle = frozenset(
                after + idle.removeprefix(before) if idle.startswith(before) else idle
                for idle in backbone.idle
            )


def _channels(backbone: AnyBackbone, stage: nn.Module, name: str, size: int) -> int:
    """Number of channels of a stage's map, from a forward pass of one black square."""
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
