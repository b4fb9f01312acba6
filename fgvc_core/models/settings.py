"""Settings of ``[model]``."""

from typing import Literal

from pydantic import Field

from fgvc_core.configuration import Settings


class ModelSettings(Settings):
    """One classifier: backbone, attention, head, and what of it trains."""

    backbone: str = Field(
        "fieldmark_nano",
        description="Our attention ResNet (fieldmark_nano, fieldmark_tiny, fieldmark_small, "
        "fieldmark_50) or any timm model by name.",
    )
    weights: str = Field(
        "none",
        description="none (seeded initialisation), hub (timm's pre-trained weights), package "
        "(the 'weights' extra, tf_efficientnet_lite0), or the path of a local .pth/.safetensors.",
    )
    attention: Literal["none", "spatial"] = Field(
        "spatial",
        description="What follows the last stage of the backbone; spatial starts as the identity.",
    )
    pooling: Literal["avg", "max", "avgmax"] = Field(
        "avg", description="How the feature map becomes one vector; avgmax averages the two."
    )
    head: Literal["linear", "cosine"] = Field(
        "linear", description="linear: weights and bias; cosine: unit vectors, scaled."
    )
    cosine_scale: float = Field(
        16.0, gt=0.0, le=128.0, description="For cosine: the factor before softmax, 0 to 128."
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout before the head, 0 to 1.")
    train: str = Field(
        "all",
        description="What trains and travels: all, head, norm (norm layers and head), or the name "
        "of the first backbone stage that trains (it and everything after it).",
    )
