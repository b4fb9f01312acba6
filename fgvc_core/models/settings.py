"""Settings of ``[model]``."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from fgvc_core.components import ATTENTIONS, HEADS, POOLINGS
from fgvc_core.configuration import text
from fgvc_core.registry import OpenSettings


class ModelSettings(OpenSettings):
    """One classifier: backbone, attention, head, and which parts train."""

    chosen = {"attention": ATTENTIONS, "pooling": POOLINGS, "head": HEADS}  # noqa: RUF012

    backbone: str = Field(
        "fieldmark_nano",
        description="Our attention ResNet (fieldmark_nano, fieldmark_tiny, fieldmark_small, "
        "fieldmark_50) or any timm model by name.",
        json_schema_extra=text("word"),
    )
    backbones: tuple[str, ...] = Field(
        (),
        max_length=4,
        description="Several frozen timm models side by side in place of backbone, 2 to 4 names: "
        "each one's map is scaled to a public unit, and they are joined. Costs as much as they do "
        "together, once a picture. Only with train = 'head', attention = 'none' and weights none, "
        "package or hub.",
        json_schema_extra=text("word"),
    )
    until: str = Field(
        "",
        description="Last stage of a frozen timm backbone that is computed, by name ('blocks.4'); "
        "what follows is left out. Empty: all of it. What is unlike the pictures that the weights "
        "were trained on may be told apart by earlier stages better. Only with train = 'head'; "
        "subspace and whitened heads then take every channel as a direction.",
        json_schema_extra=text("word"),
    )
    weights: str = Field(
        "none",
        description="none (seeded initialisation), package (the 'weights' extra: "
        "tf_efficientnet_lite0, _lite1, _lite2), sha256:DIGEST (the weights file with that "
        "SHA-256, 64 hexadecimal digits, which each party keeps in its weights/ folder), hub "
        "(timm's pre-trained weights; a site has to allow the network), or in a simulation the "
        "path of a .pth/.safetensors.",
        json_schema_extra=text("weights"),
    )
    norm: Literal["batch", "frozen", "fixbn", "local", "group", "standardised"] = Field(
        "batch",
        description="What becomes of the backbone's BatchNorm: batch (as it is), frozen (its "
        "statistics stay as they were pre-trained), fixbn (frozen from norm_fixed_from on), local "
        "(stays at each site, FedBN; not under [privacy]), group (GroupNorm in its place), "
        "standardised (that, and weight standardisation).",
    )
    norm_fixed_from: float = Field(
        0.5, gt=0.0, lt=1.0, description="fixbn: the share of the rounds before that, 0 to 1."
    )
    attention: Annotated[str, AfterValidator(ATTENTIONS.check)] = Field(
        "spatial",
        description="What looks at a map: spatial (where), se and eca (which channels), cbam "
        "(both, without BatchNorm), nonlocal (positions that resemble each other), dual "
        "(nonlocal, and channels likewise). Each starts as the identity.",
        json_schema_extra=text("word"),
    )
    attention_after: tuple[str, ...] = Field(
        (),
        description="Stages of a convolutional backbone behind which attention is put, by name; "
        "empty: behind the last map alone.",
        json_schema_extra=text("word"),
    )
    token_selection: bool = Field(
        False,
        description="For a ViT or DeiT: only the class token and the tokens that it attends to "
        "most, one a head, enter the last layer.",
    )
    spatial_transformer: bool = Field(
        False,
        description="Turn, move and enlarge each picture by an affine map that is learned; starts "
        "as the identity.",
    )
    pooling: Annotated[str, AfterValidator(POOLINGS.check)] = Field(
        "avg",
        description="How the feature map becomes one vector: mean, maximum, avgmax (their mean), "
        "both (one after the other, twice as long), moments (mean and standard deviation over "
        "positions, one after the other), gem (generalised mean), bilinear or mpncov "
        "(second order, of pooling_channels channels), parts (learnt attention maps, one vector "
        "each).",
        json_schema_extra=text("word"),
    )
    parts: int = Field(
        4,
        ge=1,
        le=64,
        description="parts: how many maps, 1 to 64; the head is as many times as long.",
    )
    gem_power: float = Field(3.0, ge=1.0, le=16.0, description="gem: where its power starts.")
    pooling_channels: int = Field(
        64,
        ge=2,
        le=512,
        description="bilinear, mpncov: channels d that are paired, 2 to 512; the vector has "
        "d (d + 1) / 2 entries.",
    )
    scaling: Literal["none", "root", "unit", "root-unit"] = Field(
        "none",
        description="What is done to the pooled vector: root takes the square root of each value "
        "and keeps its sign, unit scales the vector to length 1.",
    )
    mirrored: bool = Field(
        False,
        description="Outside training, and for cached features: average the vectors of a picture "
        "and of its mirror image. Doubles the cost; not where left and right mean something.",
    )
    closer: float = Field(
        0.0,
        ge=0.0,
        le=4.0,
        description="Outside training, and for cached features: average a picture's vector with "
        "that of a closer look, the square around where its map is strong, so many standard "
        "deviations to each side, 0 to 4. 0: none. It costs as much again.",
    )
    middle: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Likewise a look at the middle, this share of the side, 0 to 1. 0: none.",
    )
    crop: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of a picture's short side that the square keeps, 0.25 to 1. 0: what "
        "the weights were trained with.",
    )
    head: Annotated[str, AfterValidator(HEADS.check)] = Field(
        "linear",
        description="linear: weights and bias; cosine: unit vectors, scaled; subspace: linear on "
        "unit vectors in the public subspace of the pre-trained classifier's own weights; "
        "whitened: that, on vectors whitened by a scatter (privacy.scatter_share); "
        "multilevel: a part for each level of the taxonomy; semantic: reads public attributes "
        "and names the class that has them.",
        json_schema_extra=text("word"),
    )
    class_groups: tuple[tuple[int, ...], ...] = Field(
        (),
        description="multilevel: for each level above the class, coarse to fine, each class's "
        "group as a number from 0. Empty: filled in from the data set in a simulation.",
    )
    class_attributes: tuple[tuple[float, ...], ...] = Field(
        (),
        description="semantic: each class's public attributes, 0 to 1. Empty: filled in from the "
        "data set in a simulation.",
    )
    unseen_classes: tuple[int, ...] = Field(
        (),
        description="semantic: numbers of classes of which no site has a training picture. "
        "Empty: filled in from partition.unseen in a simulation.",
    )
    directions: int = Field(
        58, ge=2, le=2048, description="subspace: principal directions kept, 2 to 2048."
    )
    related_classes: tuple[str, ...] = Field(
        (),
        description="subspace: the pre-trained classifier's classes that are related to the task, "
        "as numbers or ranges ('7-24', both included); their directions come first. "
        "Empty: all classes alike.",
        json_schema_extra=text("word"),
    )
    cosine_scale: float = Field(
        16.0, gt=0.0, le=128.0, description="cosine, semantic: the factor before softmax, 0 to 128."
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout before the head, 0 to 1.")
    train: str = Field(
        "all",
        description="What trains and travels: all, head, norm (norm layers and head), or the name "
        "of the first backbone stage that trains (it and everything after it).",
        json_schema_extra=text("word"),
    )

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the backbones: one, or those side by side."""
        return self.backbones or (self.backbone,)

    @property
    def title(self) -> str:
        """The backbones in a word: ``tf_efficientnet_lite0 + tf_efficientnet_lite2``."""
        return " + ".join(self.networks)

    @field_validator("weights")
    @classmethod
    def _whole_digest(cls, value: str) -> str:
        if value.startswith("sha256:") and not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
            raise ValueError("sha256: needs all 64 hexadecimal digits, in lower case")
        return value

    @field_validator("crop")
    @classmethod
    def _not_too_close(cls, value: float) -> float:
        if 0.0 < value < 0.25:
            raise ValueError("it must be 0 (as the weights were trained) or at least 0.25")
        return value

    @field_validator("attention_after")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each stage can be named once")
        return value

    @field_validator("related_classes")
    @classmethod
    def _ranges(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for given in value:
            first, _, last = given.partition("-")
            if not first.isdigit() or (last and not (last.isdigit() and int(first) <= int(last))):
                raise ValueError(f"'{given}' is neither a number nor a range such as '7-24'")
        return value

    @field_validator("backbones")
    @classmethod
    def _several(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) == 1:
            raise ValueError(f"one backbone is named by model.backbone = '{value[0]}'")
        if len(set(value)) != len(value):
            raise ValueError("each backbone can be named once: twice the same says nothing more")
        return value

    @model_validator(mode="after")
    def _ends_early(self) -> Self:
        if not self.until:
            return self
        if self.train != "head":
            raise ValueError("until needs train = 'head': what is computed is frozen")
        for name in ("backbones", "attention_after", "related_classes", "token_selection"):
            if getattr(self, name):
                raise ValueError(f"until and {name} do not go together")
        return self

    @model_validator(mode="after")
    def _side_by_side(self) -> Self:
        if not self.backbones:
            return self
        if self.backbone != type(self).model_fields["backbone"].default:
            raise ValueError(
                f"backbone = '{self.backbone}' and backbones are both given: leave backbone out"
            )
        for name, wanted in (("train", "head"), ("attention", "none")):
            if getattr(self, name) != wanted:
                raise ValueError(
                    f"backbones need {name} = '{wanted}': they are frozen, and nothing is put "
                    "behind their maps"
                )
        if self.attention_after or self.token_selection:
            raise ValueError("backbones go without attention_after and token_selection")
        if self.weights not in ("none", "package", "hub"):
            raise ValueError(
                "backbones need weights = 'package' or 'hub' (or none): a file has one network's"
            )
        return self
