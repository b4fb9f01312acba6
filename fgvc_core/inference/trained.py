"""A model from a checkpoint, with the recipe it was made by: what pictures have to look
like, what its classes are called, and its logits.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.data.transforms import square
from fgvc_core.errors import DataError
from fgvc_core.experiment import make_learner
from fgvc_core.inference.checkpoint_file import find_checkpoint, read_checkpoint
from fgvc_core.models.classifier import FineGrainedClassifier
from fgvc_core.models.weights_folder import WEIGHTS, check_digest, find_weights, kind_of
from fgvc_core.recipe import Recipe, parse_recipe
from fgvc_core.training.learner import Learner


@dataclass(frozen=True)
class TrainedModel:
    """A model that can be asked.

    Attributes:
        path: The checkpoint it came from.
        recipe: What made it.
        class_names: K names in the order of the logits.
        learner: The recipe's learner with the checkpoint's tensors.
        metadata: Everything else that the checkpoint says of itself, as text.
    """

    path: Path
    recipe: Recipe
    class_names: tuple[str, ...]
    learner: Learner
    metadata: dict[str, str]

    @property
    def model(self) -> FineGrainedClassifier:
        """The network, in evaluation mode."""
        return self.learner.model

    def view(self, picture_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A picture (H, W, 3) of any size as the uint8 square (S, S, 3) the model sees."""
        spec = self.model.input
        return square(picture_HWC, spec.size, spec.crop, spec.interpolation)

    @torch.no_grad()
    def logits(self, views_NHWC: NDArray[np.uint8]) -> torch.Tensor:
        """Logits (N, K), float32 on the CPU, of N squares as :meth:`view` makes them."""
        device = next(self.model.parameters()).device
        pixels_NHWC = torch.from_numpy(np.require(views_NHWC, requirements=["C", "W"]))
        images_NCHW = pixels_NHWC.permute(0, 3, 1, 2)
        return self.model(self.model.normalise(images_NCHW.to(device))).float().cpu()


def load_trained(
    path: Path, device: torch.device | str = "cpu", weights: str | None = None
) -> TrainedModel:
    """The model of a run's folder (its best one) or of one checkpoint file.

    Args:
        path: A run's folder or a ``.safetensors`` file of one.
        device: Where it computes.
        weights: Pre-trained weights of the backbone in place of the recipe's
            ``model.weights``, for a machine that keeps them elsewhere.

    Raises:
        DataError: if there is no checkpoint, or it is damaged or no run's.
        ConfigurationError: if its recipe cannot be built here, or the weights are not those that
            it names by their digest.
    """
    file = find_checkpoint(Path(path))
    tensors, metadata = read_checkpoint(file)
    if "recipe" not in metadata or "class_names" not in metadata:
        raise DataError(
            f"The file '{file}' says nothing of a recipe.",
            why="Which network its tensors belong to is read from the recipe inside it.",
            remedy="Name a checkpoint that a run of Fieldmark wrote.",
        )
    recipe = parse_recipe(metadata["recipe"])
    if weights is not None:
        check_digest(recipe.model.weights, Path(weights))
    elif kind_of(recipe.model.weights) == "digest":
        weights = _beside(file, recipe.model.weights)
    if weights is not None:
        model = recipe.model.model_copy(update={"weights": weights})
        recipe = recipe.model_copy(update={"model": model})
    class_names = tuple(json.loads(metadata["class_names"]))
    learner = make_learner(recipe, len(class_names), device)
    learner.load(tensors)
    learner.model.eval()
    return TrainedModel(file, recipe, class_names, learner, metadata)


def _beside(file: Path, weights: str) -> str | None:
    """The weights file of a checkpoint in a coordinator's folder, if it is still there.

    ``FOLDER/runs/NAME/checkpoints/best.safetensors`` has ``FOLDER/weights/``.
    """
    above = file.resolve().parents
    found = find_weights(weights, [folder / WEIGHTS for folder in above[1:4]])
    return None if found is None else str(found)
