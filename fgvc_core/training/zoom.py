"""Scoring twice: the whole picture, and a closer view of where the model looked.

Hu et al. 2019, "See Better Before Looking Closer", section 3.3 (object localisation and
refinement), https://arxiv.org/abs/1901.09891; Fu et al. 2017, "Look Closer to See Better",
https://openaccess.thecvf.com/content_cvpr_2017/html/Fu_Look_Closer_to_CVPR_2017_paper.html. The
closer view is cut from a larger copy of the picture, so that it shows what was not there before;
the logits of both are averaged. Nothing is trained for it. Cost: scoring takes twice as long,
and the larger copies their room in the cache. A warning: the model never saw so close a view
in training unless ``augment.zoom`` shows it some, and a wrong look makes a wrong answer surer.
"""

from typing import TYPE_CHECKING

import torch

from fgvc_core.models.looking import centres, look

if TYPE_CHECKING:
    from fgvc_core.data.pictures import PictureBank
    from fgvc_core.models.classifier import FineGrainedClassifier
    from fgvc_core.training.examples import Lesson, PictureExamples


class ZoomedExamples:
    """Pictures whose scores are the mean of two looks; see :class:`Examples`.

    Args:
        whole: The pictures as the model sees them.
        larger: The same pictures, cut the same, with a larger side.
    """

    def __init__(self, whole: "PictureExamples", larger: "PictureBank") -> None:
        self._whole = whole
        self._larger = larger
        self.labels_N = whole.labels_N
        self.known = whole.known

    def __len__(self) -> int:
        return len(self._whole)

    def logits(
        self,
        model: "FineGrainedClassifier",
        positions: torch.Tensor,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """See :class:`Examples`; with a generator as the whole pictures alone.

        Raises:
            ConfigurationError: if the model has no map to look with.
        """
        if generator is not None:
            return self._whole.logits(model, positions, generator)
        device = next(model.parameters()).device
        whole_NCHW = self._whole.bank.batch(positions.numpy()).to(device)
        logits_NK, look_NHW = look(model, model.normalise(whole_NCHW))
        larger_NCHW = self._larger.batch(positions.numpy())
        closer_NCHW = cut(larger_NCHW, centres(look_NHW).cpu(), self._whole.bank.size)
        return (logits_NK + model(model.normalise(closer_NCHW.to(device)))) / 2

    def features(
        self,
        model: "FineGrainedClassifier",
        positions: torch.Tensor,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """Those of the whole pictures; see :class:`Examples`."""
        return self._whole.features(model, positions, generator)

    def lesson(
        self, model: "FineGrainedClassifier", positions: torch.Tensor, generator: torch.Generator
    ) -> "Lesson":
        """That of the whole pictures; see :class:`Examples`."""
        return self._whole.lesson(model, positions, generator)


def cut(images_NCHW: torch.Tensor, centres_N2: torch.Tensor, size: int) -> torch.Tensor:
    """Squares (N, C, size, size) around centres, moved inside the picture where they stick out.

    Args:
        images_NCHW: Squares of a larger side.
        centres_N2: Row and column, 0 to 1.
        size: Side of what is cut, in pixels.
    """
    side = images_NCHW.shape[-1]
    corners_N2 = (centres_N2 * side - size / 2).round().long().clamp(0, side - size)
    pieces = [
        image_CHW[:, row : row + size, column : column + size]
        for image_CHW, (row, column) in zip(images_NCHW, corners_N2.tolist(), strict=True)
    ]
    if not pieces:
        return images_NCHW.new_zeros((0, images_NCHW.shape[1], size, size))
    return torch.stack(pieces)
