"""Export as a folder in Hugging Face's format, which timm loads.

The folder holds ``model.safetensors``, ``config.json`` and ``README.md``. timm's own architectures
cover plain networks only. Importing this module registers a timm entry for all other classifiers
(with attention, another pooling or a cosine head); a folder of one names this entry and contains
its recipe.
"""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from timm.models import register_model
from torch import nn

from fgvc_core import __version__
from fgvc_core.errors import RunFailed
from fgvc_core.export.onnx_export import write_folder
from fgvc_core.export.onnx_graph import confidence_facts
from fgvc_core.inference.trained import TrainedModel
from fgvc_core.models.backbones import TimmBackbone
from fgvc_core.models.build import build_classifier
from fgvc_core.models.classifier import FineGrainedClassifier
from fgvc_core.models.weights import InputSpec
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
    """The classifier of an exported folder, as a timm entry point.

    Args:
        pretrained: Load the folder's ``model.safetensors``.
        recipe: The recipe as TOML, from the folder's ``config.json``.
        num_classes: K.
        pretrained_cfg: The folder's configuration; passed by timm.
        **other: Further arguments that timm passes to every entry point; ignored.

    Returns:
        A model that maps normalized pictures (N, 3, S, S) to logits (N, K).
    """
    from safetensors.torch import load_file

    read = parse_recipe(recipe)
    settings = read.model
    if settings.head not in ("subspace", "whitened"):
        # All tensors are in the folder; only a subspace's directions come from the public weights.
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


SNIPPET = """\
import timm
{register}
model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
logits_NK = model(images_NCHW)  # normalised with config.json's mean and std
shares_NK = {shares}
"""

_SAME = 1e-5
"""Largest difference of equal logits, relative to the largest logit."""


def make_folder(trained: TrainedModel) -> tuple[dict[str, bytes], bool]:
    """Tensors and configuration of the folder, and whether timm alone can load them.

    If timm has the same network (no attention, mean pooling, a linear head), the tensors get timm's
    names. This is verified: the folder is native only if timm's network gives the same logits.

    Returns:
        File name -> content, without the card; and True for a folder that does not need Fieldmark.
    """
    native = _native_state(trained)
    if native is not None:
        state, architecture, arguments = native
    else:
        state = {n: t.detach().cpu().contiguous() for n, t in trained.model.state_dict().items()}
        recipe = trained.recipe.model_copy(
            update={"data": trained.recipe.data.model_copy(update={"path": None})}
        )
        architecture, arguments = ENTRY, {"recipe": recipe.to_toml()}
    spec = trained.model.input
    config = {
        "architecture": architecture,
        "num_classes": len(trained.class_names),
        "num_features": trained.model.feature_dim,
        "label_names": list(trained.class_names),
        "model_args": {**arguments, "num_classes": len(trained.class_names)},
        "pretrained_cfg": {
            "input_size": [3, spec.size, spec.size],
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": spec.interpolation,
            "crop_pct": spec.crop,
            "crop_mode": "center",
            "num_classes": len(trained.class_names),
        },
        "fieldmark": {
            "version": __version__,
            "recipe_digest": trained.recipe.digest,
            "confidence": confidence_facts(trained),
        },
    }
    return {
        "model.safetensors": save(state, {"format": "pt"}),
        "config.json": json.dumps(config, indent=1).encode(),
    }, native is not None


def snippet(folder: str, native: bool, temperature: float | None = None) -> str:
    """The Python code that loads a folder and gives the shares of the classes.

    Args:
        folder: The folder.
        native: Whether timm alone can load it.
        temperature: Of the model's calibration; None: it has none.
    """
    register = "" if native else "import fgvc_core.export.folder  # Fieldmark's own networks"
    shares = "logits_NK.softmax(1)  # not calibrated"
    if temperature is not None:
        shares = f"(logits_NK / {temperature!r}).softmax(1)  # calibrated"
    text = SNIPPET.format(folder=folder, register=register, shares=shares)
    return text.replace("\n\n", "\n")


def write(trained: TrainedModel, parts: dict[str, bytes], card: str, folder: Path) -> list[Path]:
    """Write the folder, and check that timm loads it from its path with equal logits.

    Raises:
        RunFailed: if timm's model gives other logits; the folder stays for inspection.
        ConfigurationError: if the folder cannot be written.
    """
    paths = write_folder(folder, {**parts, "README.md": card.encode()})
    images_NCHW = _noise(trained)
    loaded = timm.create_model(f"local-dir:{folder.absolute()}", pretrained=True).eval()
    with torch.no_grad():
        expected_NK = trained.model(images_NCHW)
        found_NK = loaded(images_NCHW)
    if not _equal(found_NK, expected_NK):
        raise RunFailed(
            "timm loads the folder, but gives other logits, by up to "
            f"{float((found_NK - expected_NK).abs().max()):.2g}.",
            remedy=f"Do not hand on '{folder}'; report it with the recipe.",
        )
    return paths


def _native_state(
    trained: TrainedModel,
) -> tuple[dict[str, torch.Tensor], str, dict[str, Any]] | None:
    """State dict, architecture and arguments in timm's names; None if timm has no such network."""
    model, settings = trained.model, trained.recipe.model
    own = (settings.pooling, settings.head, settings.scaling) == ("avg", "linear", "none")
    plain = isinstance(model.attention, nn.Identity) and not settings.attention_after
    plain = plain and not (model.mirrored or model.closer or model.middle)
    if not isinstance(model.backbone, TimmBackbone) or not own or not plain:
        return None
    architecture = settings.backbone.split(".")[0]
    arguments: dict[str, Any] = {}
    if model.backbone.model.pretrained_cfg.get("fixed_input_size"):
        arguments["img_size"] = model.input.size
    try:
        network: Any = timm.create_model(
            architecture, num_classes=len(trained.class_names), **arguments
        )
        classifier = network.pretrained_cfg["classifier"]
        state = {
            name.removeprefix("backbone.model."): tensor.detach().cpu().contiguous()
            for name, tensor in model.state_dict().items()
            if name.startswith("backbone.model.")
        }
        state |= {
            f"{classifier}.{part}": model.get_parameter(f"head.{part}").detach().cpu().contiguous()
            for part in ("weight", "bias")
        }
        network.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError, AttributeError):
        # The head is not a linear layer, or the tensors differ: not a network of timm's.
        return None
    images_NCHW = _noise(trained)
    with torch.no_grad():
        same = _equal(network.eval()(images_NCHW), model(images_NCHW))
    return (state, architecture, arguments) if same else None


def _equal(found_NK: torch.Tensor, expected_NK: torch.Tensor) -> bool:
    largest = max(float(expected_NK.abs().max()), 1.0)
    return float((found_NK - expected_NK).abs().max()) <= _SAME * largest


def _noise(trained: TrainedModel) -> torch.Tensor:
    size = trained.model.input.size
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, size, size, generator=generator)
