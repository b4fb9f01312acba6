"""Robustness: the accuracy of a model on corrupted pictures.

Follows Hendrycks and Dietterich 2019 (https://arxiv.org/abs/1903.12261, section 4): top-1 for each
corruption and severity, its mean over severities, and the mean of those over corruptions, reported
as accuracy and not relative to a reference network. Pictures are corrupted after cropping to the
model's input square, with a seed from their content: a picture gets the same corruption in every
run on every machine. Cost: 7 x 5 passes over the pictures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fgvc_core.data.corruptions import (
    CORRUPTIONS,
    NEEDS_BOX,
    SEVERITIES,
    Box,
    corrupt,
    surroundings,
)
from fgvc_core.data.pictures import PictureBank
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError
from fgvc_core.models.weights import InputSpec

if TYPE_CHECKING:
    from fgvc_core.models.classifier import FineGrainedClassifier

Classify = Callable[[torch.Tensor], torch.Tensor]
"""Maps uint8 pictures (N, 3, S, S) to logits (N, K)."""


@dataclass(frozen=True)
class Robustness:
    """Result of :func:`robustness`; all figures are accuracies, 0 to 1.

    Attributes:
        examples: Number of labeled pictures scored.
        clean: Top-1 on uncorrupted pictures.
        top1: Corruption -> top-1 at severities 1 to 5.
        left_out: Corruption -> why it was skipped.
    """

    examples: int
    clean: float
    top1: dict[str, tuple[float, ...]]
    left_out: dict[str, str]

    @property
    def means(self) -> dict[str, float]:
        """Mean over severities by corruption."""
        return {name: sum(values) / len(values) for name, values in self.top1.items()}

    @property
    def mean(self) -> float:
        """Mean over corruptions and severities."""
        means = self.means
        return sum(means.values()) / len(means)

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        return {
            "examples": self.examples,
            "clean": self.clean,
            "mean": self.mean,
            "corruptions": {
                name: {"mean": self.means[name], "severities": list(values)}
                for name, values in self.top1.items()
            },
            "left_out": dict(self.left_out),
        }


def robustness(
    model: "FineGrainedClassifier",
    table: ExampleTable,
    *,
    names: Sequence[str] = CORRUPTIONS,
    batch_size: int = 128,
    seed: int = 0,
    tell: Callable[[int, int], None] | None = None,
) -> Robustness:
    """Score a model on corrupted pictures.

    Args:
        model: A model in evaluation mode; it stays in it.
        table: The pictures; those without a label are left out.
        names: The corruptions to apply.
        batch_size: Pictures per batch.
        seed: Seed of noise, squares and backgrounds.
        tell: Called with (passes done, total).

    Raises:
        DataError: if no picture has a label, or pictures are missing or damaged.
        ConfigurationError: for an unknown corruption.
    """
    device = next(model.parameters()).device

    def classify(images_NCHW: torch.Tensor) -> torch.Tensor:
        return model(model.normalise(images_NCHW.to(device)))

    was_training = model.training
    model.eval()
    try:
        return robustness_of(
            classify,
            table,
            model.input,
            names=names,
            batch_size=batch_size,
            seed=seed,
            tell=tell,
        )
    finally:
        model.train(was_training)


@torch.inference_mode()
def robustness_of(
    classify: Classify,
    table: ExampleTable,
    spec: InputSpec,
    *,
    names: Sequence[str] = CORRUPTIONS,
    batch_size: int = 128,
    seed: int = 0,
    tell: Callable[[int, int], None] | None = None,
) -> Robustness:
    """Like :func:`robustness`, for any function that classifies squares."""
    table = table.take(np.flatnonzero(table.labels_N >= 0))
    if not len(table):
        raise DataError(
            "No picture has a label, so that nothing can be scored.",
            remedy="Give a data set with a labeled test split.",
        )
    doable = [n for n in names if n not in NEEDS_BOX or table.boxes_N4 is not None]
    left_out = {n: "The data have no boxes." for n in names if n not in doable}
    squares = _Squares(table, spec, seed)
    passes = 1 + len(doable) * len(SEVERITIES)
    done = 0

    def score(name: str | None, severity: int) -> float:
        nonlocal done
        right = 0
        for start in range(0, len(table), batch_size):
            positions = np.arange(start, min(start + batch_size, len(table)))
            predicted_B = classify(squares.batch(positions, name, severity)).argmax(dim=1)
            right += int((predicted_B.cpu().numpy() == table.labels_N[positions]).sum())
        done += 1
        if tell is not None:
            tell(done, passes)
        return right / len(table)

    clean = score(None, 0)
    top1 = {name: tuple(score(name, s) for s in SEVERITIES) for name in doable}
    return Robustness(len(table), clean, top1, left_out)


class _Squares:
    """A table's pictures as squares, corrupted on demand."""

    def __init__(self, table: ExampleTable, spec: InputSpec, seed: int) -> None:
        self._bank = PictureBank(table, spec.size, spec.crop, spec.interpolation)
        self._seeds = [
            int.from_bytes(table.content_key(i)[:7], "big") ^ seed for i in range(len(table))
        ]
        self._boxes = _square_boxes(table, spec)
        # One random cycle through all pictures: each background comes from another picture.
        order_N = np.random.default_rng(seed).permutation(len(table))
        self._behind = np.empty(len(table), dtype=np.int64)
        self._behind[order_N] = np.roll(order_N, 1)

    def batch(
        self, positions_B: NDArray[np.int64], name: str | None, severity: int
    ) -> torch.Tensor:
        """uint8 (B, 3, S, S)."""
        if name is None:
            return self._bank.batch(positions_B)
        changed = [np.asarray(self._one(i, name, severity)) for i in positions_B.tolist()]
        return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).contiguous()

    def _one(self, position: int, name: str, severity: int) -> Image.Image:
        box, backdrop = None, None
        if name in NEEDS_BOX:
            box = self._boxes[position]
            other = int(self._behind[position])
            backdrop = surroundings(self._square(other), self._boxes[other])
        seed = self._seeds[position]
        return corrupt(self._square(position), name, severity, seed, box=box, backdrop=backdrop)

    def _square(self, position: int) -> Image.Image:
        return Image.fromarray(self._bank.batch([position])[0].permute(1, 2, 0).numpy())


def _square_boxes(table: ExampleTable, spec: InputSpec) -> list[Box]:
    """The subjects' boxes in the coordinates of the cropped squares."""
    if table.boxes_N4 is None:
        return []
    boxes: list[Box] = []
    for position in range(len(table)):
        height, width = table.picture(position, spec.size).shape[:2]
        # Side and origin of the square, in pixels of the picture.
        side = min(height, width) * spec.crop
        left, top = (width - side) / 2, (height - side) / 2
        x, y, wide, high = (float(v) for v in table.boxes_N4[position])
        boxes.append(
            (
                (x * width - left) / side,
                (y * height - top) / side,
                wide * width / side,
                high * height / side,
            )
        )
    return boxes
