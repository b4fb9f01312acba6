"""One model from settings."""

import torch
from torch import nn

from fgvc_core.models.backbones import make_backbone
from fgvc_core.models.classifier import FineGrainedClassifier
from fgvc_core.models.heads import CosineHead, LinearHead, SubspaceHead
from fgvc_core.models.pooling import Pooling
from fgvc_core.models.scaling import Scaling
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.spatial import SpatialAttention
from fgvc_core.models.subspace import public_directions
from fgvc_core.models.trainable import select_trainable


def build_classifier(
    settings: ModelSettings, num_classes: int, image_size: int, seed: int
) -> FineGrainedClassifier:
    """A classifier with its initial tensors; equal arguments give equal tensors anywhere.

    Args:
        settings: Which model.
        num_classes: K, at least 1.
        image_size: Side of the squares, in pixels.
        seed: Of everything that is drawn; the global generator is left as it was.

    Raises:
        ConfigurationError: for an unknown backbone or stage, or wrong weights.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed a GPU's generator, which is not forked here.
        torch.default_generator.manual_seed(seed)
        backbone, spec = make_backbone(settings.backbone, settings.weights, image_size)
        attention = SpatialAttention() if settings.attention == "spatial" else nn.Identity()
        head: nn.Module
        if settings.head == "cosine":
            head = CosineHead(backbone.out_channels, num_classes, settings.cosine_scale)
        elif settings.head == "subspace":
            head = SubspaceHead(public_directions(settings, backbone.out_channels), num_classes)
        else:
            head = LinearHead(backbone.out_channels, num_classes)
    model = FineGrainedClassifier(
        backbone,
        attention,
        Pooling(settings.pooling),
        Scaling(settings.scaling),
        settings.dropout,
        head,
        spec,
    )
    select_trainable(model, settings.train)
    return model.to(memory_format=torch.channels_last).eval()
