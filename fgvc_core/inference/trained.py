"""Loads a trained model from a checkpoint: recipe, class names, and preprocessing of pictures."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from fgvc_core.data.files import Box, FileSource
from fgvc_core.data.reader import as_rgb, deeper_than_8_bits
from fgvc_core.data.transforms import square
from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.experiment import make_learner
from fgvc_core.inference.checkpoint_file import find_checkpoint, read_checkpoint
from fgvc_core.models.classifier import FineGrainedClassifier
from fgvc_core.models.weight_names import WEIGHTS, check_digest, find_weights, kind_of
from fgvc_core.recipe import Recipe, parse_recipe
from fgvc_core.training.learner import Learner


@dataclass(frozen=True)
class TrainedModel:
    """A model loaded from a checkpoint.

    Attributes:
        path: The checkpoint.
        recipe: The recipe that it was trained with.
        class_names: K names in the order of the logits.
        learner: The recipe's learner with the checkpoint's tensors.
        metadata: The checkpoint's metadata, as text.
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

    def read(self, root: Path, relative: str, box: Box | None = None) -> NDArray[np.uint8]:
        """A picture file below a folder as RGB, uint8 (H, W, 3), downscaled towards the input size.

        Args:
            root: Folder that the file must not lead out of.
            relative: Path below it.
            box: Subject to cut out, with the margin of the model's training.

        Raises:
            DataError: if the file is missing or damaged.
        """
        short = round(self.model.input.size / self.model.input.crop)
        crops = None if box is None else (box,)
        margin = self.recipe.data.crop_margin
        source = FileSource(root, (relative,), crops=crops, margin=margin)
        return source.read_as(self.recipe.data).picture(0, short)

    def view(self, picture_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A picture (H, W, 3) of any size as the uint8 square (S, S, 3) that the model sees."""
        spec = self.model.input
        return square(picture_HWC, spec.size, spec.crop, spec.interpolation)

    @torch.no_grad()
    def logits(self, views_NHWC: NDArray[np.uint8]) -> torch.Tensor:
        """Logits (N, K), float32 on the CPU, of N squares from :meth:`view`."""
        device = next(self.model.parameters()).device
        pixels_NHWC = torch.from_numpy(np.require(views_NHWC, requirements=["C", "W"]))
        images_NCHW = pixels_NHWC.permute(0, 3, 1, 2)
        return self.model(self.model.normalise(images_NCHW.to(device))).float().cpu()


class LoadedModel(nn.Module):
    """A trained classifier as a module, with the transform that its pictures need.

    Args:
        trained: The model; it is in evaluation mode.

    Attributes:
        classifier: Normalized images to logits: backbone, attention, pooling and head.
        class_names: K names in the order of the logits.

    Example:
        >>> model = load_model("runs/demo")  # doctest: +SKIP
        >>> model(model.transform("bird.jpg")[None]).softmax(1)  # doctest: +SKIP
    """

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.classifier = trained.model
        self.class_names = trained.class_names
        self._trained = trained

    def transform(
        self, picture: "str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"
    ) -> torch.Tensor:
        """A picture as the model's input, float32 (3, S, S) on the model's device.

        Args:
            picture: A file, a Pillow image, or uint8 (H, W, 3) RGB values.

        Raises:
            DataError: if a file is missing or damaged.
        """
        if isinstance(picture, str | os.PathLike):
            file = Path(picture)
            picture_HWC = self._trained.read(file.resolve().parent, file.resolve().name)
        elif isinstance(picture, Image.Image):
            picture_HWC = _pixels(picture)
        else:
            picture_HWC = picture
        view_HWC = torch.from_numpy(np.require(self._trained.view(picture_HWC), None, ["C", "W"]))
        device = next(self.classifier.parameters()).device
        view_NCHW = view_HWC.permute(2, 0, 1)[None].to(device)
        return self.classifier.normalise(view_NCHW)[0]

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Logits (N, K) of N transformed pictures (N, 3, S, S)."""
        return self.classifier(images_NCHW)


def _pixels(picture: Image.Image) -> NDArray[np.uint8]:
    deep = deeper_than_8_bits(picture)
    if deep:
        raise DataError(
            f"The picture has more than 8 bits a channel ('{deep}').",
            why="How its values map to 0..255 is a choice that changes what a model sees.",
            remedy="Convert it to 8 bits with the window that your field uses.",
        )
    return as_rgb(picture)


def load_whole(
    path: Path, device: torch.device | str = "cpu", weights: str | None = None
) -> TrainedModel:
    """Load a complete model for use on pictures; see :func:`load_trained`.

    Raises:
        ConfigurationError: also if some of its tensors stayed at the sites.
    """
    trained = load_trained(path, device, weights)
    refuse_partial(trained.recipe)
    return trained


def refuse_partial(recipe: Recipe) -> None:
    """Refuse a checkpoint that lacks tensors which stayed at the sites.

    Raises:
        ConfigurationError: names them.
    """
    if recipe.federation.local:
        raise ConfigurationError(
            f"The checkpoint holds no whole model: {list(recipe.federation.local)} stayed at the "
            "sites (federation.local).",
            why="In their place are the tensors that training began with.",
            remedy="Use the model at a site, with its own tensors.",
        )


def load_trained(
    path: Path, device: torch.device | str = "cpu", weights: str | None = None
) -> TrainedModel:
    """The best model of a run's folder, or the model of one checkpoint file.

    Args:
        path: A run's folder, or a ``.safetensors`` file from one.
        device: Device of the model.
        weights: File with the backbone's pretrained weights, in place of the recipe's
            ``model.weights``.

    Raises:
        DataError: if there is no checkpoint, or it is damaged or not written by a run.
        ConfigurationError: if its recipe cannot be built here, or ``weights`` does not have the
            digest that the recipe names.
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
    learner = make_learner(recipe, len(class_names), device, keeps_maps=False)
    learner.load(tensors)
    learner.model.eval()
    return TrainedModel(file, recipe, class_names, learner, metadata)


def _beside(file: Path, weights: str) -> str | None:
    """The weights file that a checkpoint in a coordinator's folder needs, if it is still there.

    ``FOLDER/runs/NAME/checkpoints/best.safetensors`` uses ``FOLDER/weights/``.
    """
    above = file.resolve().parents
    found = find_weights(weights, [folder / WEIGHTS for folder in above[1:4]])
    return None if found is None else str(found)
