"""How large a model is, found out without allocating it.

A recipe comes from somebody else, and a backbone's name is all that it takes to ask for 27 GB.
The model is built on PyTorch's meta device, where tensors have shapes and no values
(https://docs.pytorch.org/docs/stable/meta.html): seconds, whatever its size.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from fgvc_core.models.build import build_classifier
from fgvc_core.models.classifier import FineGrainedClassifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.trainable import is_frozen_backbone, travelling_names

_FEWER, _MORE = 2, 4
"""Pictures of the two steps that are looked at; BatchNorm needs more than one. Their difference
leaves out what a step keeps once, such as standardized weights."""


@dataclass(frozen=True)
class ModelSize:
    """What a model takes, whatever its weights.

    Attributes:
        parameters: Numbers in it, statistics of norms included.
        trained: Those of them that train.
        travelling: Those that travel, with the statistics that go along.
        features: Length D of the vector before the head.
    """

    parameters: int
    trained: int
    travelling: int
    features: int


@lru_cache(maxsize=8)
def model_size(settings: ModelSettings, num_classes: int, image_size: int) -> ModelSize:
    """The size of a recipe's model.

    A head in the subspace of pre-trained weights is counted as a linear one, which has no fewer.

    Args:
        settings: Which model; its weights are not looked at.
        num_classes: K, at least 1.
        image_size: Side of the squares, in pixels.

    Raises:
        ConfigurationError: if there is no such model.
    """
    model = _without_values(settings, num_classes, image_size)
    state = model.state_dict()
    return ModelSize(
        parameters=sum(tensor.numel() for tensor in state.values()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        travelling=sum(state[name].numel() for name in travelling_names(model)),
        features=model.feature_dim,
    )


@lru_cache(maxsize=8)
def kept_bytes(settings: ModelSettings, num_classes: int, image_size: int) -> int:
    """Bytes that automatic differentiation keeps for each picture of a training step.

    Parameters, gradients and the optimizer's own numbers are not among them. 0 where the backbone
    is frozen, so that vectors are made once, and where a step cannot be looked at without values.

    Args:
        settings: Which model; its weights are not looked at.
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
        # A layer that asks for values, which there are none of here.
        return 0
    finally:
        model.eval()
    return (more - fewer) // (_MORE - _FEWER)


def _kept(model: FineGrainedClassifier, pictures: int, image_size: int) -> int:
    """Bytes that one step keeps, each storage once, those of the model itself left out."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            # Held here, so that no other storage takes its address meanwhile.
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
    head = "linear" if settings.head == "subspace" else settings.head
    plain = settings.model_copy(update={"weights": "none", "head": head})
    with torch.device("meta"):
        return build_classifier(plain, num_classes, image_size, seed=0)
