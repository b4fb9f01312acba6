"""One model from settings."""

from dataclasses import replace

import torch
from torch import nn

from fgvc_core.models.attention import KINDS, insert_attention
from fgvc_core.models.attribute_head import AttributeHead, check_attributes
from fgvc_core.models.backbones import TimmBackbone, make_backbone
from fgvc_core.models.classifier import FineGrainedClassifier
from fgvc_core.models.heads import CosineHead, LinearHead, SubspaceHead
from fgvc_core.models.multilevel import MultiLevelHead, check_groups
from fgvc_core.models.normalisation import apply_policy
from fgvc_core.models.pooling import make_pooling
from fgvc_core.models.scaling import Scaling
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.spatial_transformer import SpatialTransformer
from fgvc_core.models.subspace import public_directions
from fgvc_core.models.tokens import TokenSelection
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
        if settings.crop:
            spec = replace(spec, crop=settings.crop)
        apply_policy(backbone, settings.norm, settings.backbone)
        if settings.norm == "standardised" and isinstance(backbone, TimmBackbone):
            # Its tensors have other names now.
            backbone.probe(image_size)
        if settings.token_selection:
            _select_tokens(backbone, settings.backbone)
        attention: nn.Module = nn.Identity()
        if settings.attention_after:
            insert_attention(backbone, settings.attention, settings.attention_after, image_size)
        else:
            attention = KINDS[settings.attention](backbone.out_channels)
        before = SpatialTransformer() if settings.spatial_transformer else None
        pooling = make_pooling(settings, backbone.out_channels)
        head: nn.Module
        if settings.head == "cosine":
            head = CosineHead(pooling.out_dim, num_classes, settings.cosine_scale)
        elif settings.head == "subspace":
            head = SubspaceHead(public_directions(settings, pooling.out_dim), num_classes)
        elif settings.head == "multilevel":
            check_groups(settings.class_groups, num_classes)
            head = MultiLevelHead(pooling.out_dim, settings.class_groups)
        elif settings.head == "semantic":
            check_attributes(settings.class_attributes, settings.unseen_classes, num_classes)
            head = AttributeHead(
                pooling.out_dim,
                settings.class_attributes,
                settings.cosine_scale,
                settings.unseen_classes,
            )
        else:
            head = LinearHead(pooling.out_dim, num_classes)
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


def _select_tokens(backbone: nn.Module, name: str) -> None:
    model = backbone.model if isinstance(backbone, TimmBackbone) else backbone
    selection = TokenSelection(model, name)
    if isinstance(backbone, TimmBackbone):
        backbone.selection = selection
