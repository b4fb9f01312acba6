"""Chooses the layer from which class maps are made."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fgvc_core.errors import ConfigurationError, nearest
from fgvc_core.models.backbones import TimmBackbone
from fgvc_core.models.classifier import FineGrainedClassifier

FINE_ENOUGH = 14
"""Least positions per side with which a map can resolve parts: stride 16 at 224 px."""

Reshape = Callable[[torch.Tensor], torch.Tensor]


def find_layer(model: FineGrainedClassifier, stage: str) -> tuple[nn.Module, Reshape | None]:
    """The layer, and a function that reshapes its output to (N, C, h, w) if necessary.

    Args:
        model: The classifier.
        stage: ``last`` (behind the attention), a stage of the backbone by name, or ``auto``: the
            deepest of these with at least 14 positions per side.

    Raises:
        ConfigurationError: if the stage is unknown, or the network's layers have no spatial
            positions.
    """
    if not isinstance(model.before, nn.Identity):
        raise ConfigurationError(
            "No class map can be made for a model that turns its pictures first.",
            why="Its layers' maps are of the turned picture, and would lie in the wrong places.",
            remedy="Explain a model without a spatial transformer.",
        )
    shapes = _map_sides(model)
    if shapes.get("last", 0) < 2 and _is_of_tokens(model):
        return _last_block(model, stage)
    if stage == "auto":
        fine = [name for name, side in shapes.items() if side >= FINE_ENOUGH]
        stage = fine[-1] if fine else max(shapes, key=lambda name: shapes[name], default="last")
    if stage not in shapes:
        raise ConfigurationError(
            f"--stage '{stage}' gives no map of channels in this network.",
            remedy=f"{nearest(stage, shapes)} Choices: auto, {', '.join(shapes)}.".strip(),
        )
    if shapes[stage] < 2:
        raise _no_places(model)
    if stage == "last":
        return model.attention, None
    return _root(model).get_submodule(stage), _to_nchw if _channels_come_last(model) else None


def _map_sides(model: FineGrainedClassifier) -> dict[str, int]:
    """Stage -> shorter side of its map, in the order of the forward pass; 'last' comes last."""
    last = _channels_come_last(model)
    sides: dict[str, int] = {}

    def look(name: str, channels_last: bool) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, found: Any) -> None:
            if isinstance(found, torch.Tensor) and found.ndim == 4:
                height, width = found.shape[1:3] if channels_last else found.shape[2:]
                sides[name] = min(height, width)

        return hook

    root = _root(model)
    handles = [
        root.get_submodule(name).register_forward_hook(look(name, last))
        for name in model.stage_names
    ]
    handles.append(model.attention.register_forward_hook(look("last", False)))
    try:
        with torch.inference_mode():
            size = model.input.size
            device = next(model.parameters()).device
            model.attention(model.backbone(torch.zeros(1, 3, size, size, device=device)))
    finally:
        for handle in handles:
            handle.remove()
    return sides


def _last_block(
    model: FineGrainedClassifier, stage: str
) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """The last block of a vision transformer, and a function that puts its tokens on the grid."""
    network: Any = _root(model)
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    blocks = getattr(network, "blocks", None)
    if grid is None or not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise _no_places(model)
    layer = getattr(blocks[-1], "norm1", None)
    if not isinstance(layer, nn.Module) or stage not in ("auto", "last"):
        raise _no_places(model)
    prefix = int(getattr(network, "num_prefix_tokens", 0))

    def reshape(tokens_NTC: torch.Tensor) -> torch.Tensor:
        places_NPC = tokens_NTC[:, prefix:]
        return places_NPC.transpose(1, 2).unflatten(2, grid)

    return layer, reshape


def _no_places(model: FineGrainedClassifier) -> ConfigurationError:
    kind = type(_root(model)).__name__
    return ConfigurationError(
        f"No class map can be made for '{kind}' at this stage: its layers keep no places.",
        why="A class map needs a layer whose output is a map of the picture.",
        remedy="Leave --stage at auto, or explain a model with a convolutional backbone or a plain "
        "vision transformer.",
    )


def _is_of_tokens(model: FineGrainedClassifier) -> bool:
    """Whether the backbone is a vision transformer; a small picture's last map is one place too."""
    embedding = getattr(_root(model), "patch_embed", None)
    return getattr(embedding, "grid_size", None) is not None


def _root(model: FineGrainedClassifier) -> nn.Module:
    backbone = model.backbone
    return backbone.model if isinstance(backbone, TimmBackbone) else backbone


def _channels_come_last(model: FineGrainedClassifier) -> bool:
    return getattr(_root(model), "output_fmt", "NCHW") == "NHWC"


def _to_nchw(map_NHWC: torch.Tensor) -> torch.Tensor:
    return map_NHWC.permute(0, 3, 1, 2)
