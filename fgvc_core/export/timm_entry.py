"""Fieldmark's classifiers under a name that timm knows: import this, and timm builds them.

timm's own names describe plain networks. A classifier with attention, another pooling or a cosine
head is none of them; its exported folder names this entry and carries its recipe.
"""

from pathlib import Path
from typing import Any

from timm.models import register_model

from fgvc_core.models.build import build_classifier
from fgvc_core.models.classifier import FineGrainedClassifier
from fgvc_core.models.inputs import InputSpec
from fgvc_core.recipe import parse_recipe

ENTRY = "fieldmark_classifier"


@register_model
def fieldmark_classifier(
    pretrained: bool = False,
    *,
    recipe: str = "",
    num_classes: int = 1000,
    pretrained_cfg: dict[str, Any] | None = None,
    **other: Any,
) -> FineGrainedClassifier:
    """The classifier of an exported folder.

    Args:
        pretrained: Load ``model.safetensors`` of the folder.
        recipe: The recipe as TOML; in the folder's ``config.json``.
        num_classes: K.
        pretrained_cfg: The folder's, given by timm.
        **other: What else timm hands to every entry.

    Returns:
        It maps normalised pictures (N, 3, S, S) to logits (N, K).
    """
    from safetensors.torch import load_file

    read = parse_recipe(recipe)
    settings = read.model
    if settings.head != "subspace":
        # Every tensor is in the folder; a subspace's directions follow from public weights.
        settings = settings.model_copy(update={"weights": "none"})
    model = build_classifier(settings, num_classes, read.data.image_size, read.seed)
    told = pretrained_cfg if isinstance(pretrained_cfg, dict) else vars(pretrained_cfg or object())
    if pretrained:
        model.load_state_dict(load_file(Path(str(told["file"])) / "model.safetensors"))
    if told.get("mean"):
        spec = InputSpec(
            read.data.image_size,
            tuple(told["mean"]),
            tuple(told["std"]),
            told["interpolation"],
            float(told["crop_pct"]),
        )
        model.adapt(spec)
    return model.eval()
