"""Size of a model, computed without allocating it.

A recipe comes from another party, and a backbone's name is enough to ask for 27 GB. The model is
therefore built on PyTorch's meta device, where tensors have shapes but no values
(https://docs.pytorch.org/docs/stable/meta.html): seconds, whatever its size.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from fgvc_core.models.build import build_classifier
from fgvc_core.models.classifier import FineGrainedClassifier
from fgvc_core.models.prefix import FrozenPrefix, NoCut
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.trainable import is_frozen_backbone, travelling_names

_FEWER, _MORE = 2, 4
"""Batch sizes of the two measured steps (BatchNorm needs more than one picture). Their difference
cancels what a step stores once, such as standardized weights.
"""


@dataclass(frozen=True)
class ModelSize:
    """Size of a model, independent of its weights.

    Attributes:
        parameters: Number of values, including statistics of norm layers.
        trained: Number of values that train.
        travelling: Number of values that are exchanged, including statistics.
        tensors: Number of tensors that are exchanged.
        features: Length D of the vector before the head.
        map: Number of values of one picture's map in front of the first stage that trains; 0 if
            there is no such map.
    """

    parameters: int
    trained: int
    travelling: int
    tensors: int
    features: int
    map: int = 0


@lru_cache(maxsize=8)
def model_size(settings: ModelSettings, num_classes: int, image_size: int) -> ModelSize:
    """Compute the size of a recipe's model.

    A subspace head is counted as a linear head, which is at least as large.

    Args:
        settings: ``[model]``; its weights are not read.
        num_classes: K, at least 1.
        image_size: Side of the squares, in pixels.

    Raises:
        ConfigurationError: if there is no such model.
    """
    model = _without_values(settings, num_classes, image_size)
    state, exchanged = model.state_dict(), travelling_names(model)
    return ModelSize(
        parameters=sum(tensor.numel() for tensor in state.values()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        travelling=sum(state[name].numel() for name in exchanged),
        tensors=len(exchanged),
        features=model.feature_dim,
        map=_map_values(model, settings.train),
    )


def _map_values(model: FineGrainedClassifier, stage: str) -> int:
    if stage in ("all", "head", "norm"):
        return 0
    try:
        return math.prod(FrozenPrefix(model, stage).shape)
    except (NoCut, RuntimeError, NotImplementedError):
        # Not every layer runs without values; where none does, nothing is cut either.
        return 0


@lru_cache(maxsize=8)
def kept_bytes(settings: ModelSettings, num_classes: int, image_size: int) -> int:
    """Bytes that autograd saves for each picture of a training step.

    Excludes parameters, gradients and optimizer state. 0 if the backbone is frozen (features are
    then computed once), and if a step cannot run without values.

    Args:
        settings: ``[model]``; its weights are not read.
        num_classes: K, at least 1.
        image_size: Side of the squares, in pixels.

    Raises:
        ConfigurationError: if there is no such model.
    """
    model = _without_values(settings, num_classes, image_size)
    if is_frozen_backbone(model):
        return 0
    model.train()
    try:
        fewer, more = (_kept(model, pictures, image_size) for pictures in (_FEWER, _MORE))
    except (RuntimeError, NotImplementedError):
        # A layer needs values, which the meta device does not have.
        return 0
    finally:
        model.eval()
    return (more - fewer) // (_MORE - _FEWER)


def _kept(model: FineGrainedClassifier, pictures: int, image_size: int) -> int:
    """Bytes saved by one step, each storage once, without those of the model itself."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            # A reference keeps the address from being reused by another storage.
            kept[storage._cdata] = storage
        return tensor

    with (
        torch.device("meta"),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model(torch.zeros(pictures, 3, image_size, image_size))
    return sum(storage.nbytes() for storage in kept.values())


@lru_cache(maxsize=2)
def _without_values(
    settings: ModelSettings, num_classes: int, image_size: int
) -> FineGrainedClassifier:
    head = "linear" if settings.head in ("subspace", "whitened") else settings.head
    plain = settings.model_copy(update={"weights": "none", "head": head})
    with torch.device("meta"):
        return build_classifier(plain, num_classes, image_size, seed=0)
