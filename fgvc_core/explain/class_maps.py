"""Class maps: where the evidence for a class lies, or for one class against another.

Grad-CAM: Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391; HiResCAM: Draelos and Carin 2020,
https://arxiv.org/abs/2011.08891; LayerCAM: Jiang et al. 2021,
https://doi.org/10.1109/TIP.2021.3089943; all from the grad-cam library. The map of a difference of
two logits shows why the answer is one class and not the other, as in Finer-CAM, Zhang et al. 2025,
https://arxiv.org/abs/2501.11309. Note: the maps are as coarse as their layer, and show where its
evidence lies, not what the model would do without it.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fgvc_core.errors import ConfigurationError, missing_extra, nearest
from fgvc_core.explain.layers import find_layer
from fgvc_core.models.classifier import FineGrainedClassifier

METHODS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
}
"""Name -> class in the grad-cam library."""

Maps = NDArray[np.float32]
"""float32 (N, S, S), each 0 to 1; all zero if nothing speaks for the class."""


class ClassMaps:
    """Makes class maps of one model.

    Args:
        model: The classifier; it is copied and not changed. A frozen backbone is explained like any
            other. For a model with several views (``model.closer``, ``model.middle``), the first
            view is explained.
        method: A key of ``METHODS``.
        stage: See :func:`fgvc_core.explain.layers.find_layer`.

    Raises:
        ConfigurationError: if the method or stage is unknown, if the network's layers have no
            spatial positions, or without the 'explain' extra.
    """

    def __init__(
        self, model: FineGrainedClassifier, method: str = "layercam", stage: str = "auto"
    ) -> None:
        if method not in METHODS:
            raise ConfigurationError(
                f"--method '{method}' is unknown.",
                remedy=nearest(method, METHODS) or f"Choices: {', '.join(METHODS)}.",
            )
        self._cam = _library_class(METHODS[method])
        self._model = copy.deepcopy(model).requires_grad_(False).eval()
        self._layer, self._reshape = find_layer(self._model, stage)

    def __call__(
        self,
        views_NHWC: NDArray[np.uint8],
        wanted_N: Sequence[int] | NDArray[np.int64],
        against_N: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> Maps:
        """Maps of N pictures from :meth:`TrainedModel.view`.

        Args:
            views_NHWC: uint8 (N, S, S, 3).
            wanted_N: The class to explain in each.
            against_N: If given, the class to contrast with: only evidence for the wanted class and
                against this one counts.
        """
        targets = [
            _Difference(int(wanted), None if against_N is None else int(against_N[n]))
            for n, wanted in enumerate(wanted_N)
        ]
        device = next(self._model.parameters()).device
        images_NCHW = self._model.normalise(
            torch.from_numpy(np.ascontiguousarray(views_NHWC)).permute(0, 3, 1, 2).to(device)
        )
        own_NHW = self._maps(self._seen(images_NCHW, images_NCHW), images_NCHW, targets)
        if not self._model.mirrored:
            return own_NHW
        flipped_NCHW = images_NCHW.flip(-1)
        other_NHW = self._maps(self._seen(images_NCHW, flipped_NCHW), flipped_NCHW, targets)
        return np.asarray((own_NHW + other_NHW[:, :, ::-1]) / 2, dtype=np.float32)

    def _seen(self, images_NCHW: torch.Tensor, view_NCHW: torch.Tensor) -> "_Seen":
        """The classifier as a function of one view, with the contribution of the others constant.

        The feature vector of a mirrored model is the mean over two views; ``closer`` doubles them.
        """
        model = self._model
        share = 1 / ((2 if model.mirrored else 1) * (2 if model.closer else 1))
        with torch.no_grad():
            rest_ND = model.embed(images_NCHW) - share * model._vectors(view_NCHW)
        return _Seen(model, share, rest_ND)

    def _maps(self, seen: "_Seen", images_NCHW: torch.Tensor, targets: list["_Difference"]) -> Maps:
        with self._cam(
            model=seen,
            target_layers=[self._layer],
            reshape_transform=self._reshape,
        ) as cam:
            # With a frozen backbone, gradients exist only if the input requires them.
            asked_NCHW = images_NCHW.detach().clone().requires_grad_()
            return np.asarray(cam(input_tensor=asked_NCHW, targets=targets), dtype=np.float32)


class _Difference:
    """The library's target: one logit, or the difference of two."""

    def __init__(self, wanted: int, against: int | None) -> None:
        self.wanted, self.against = wanted, against

    def __call__(self, logits_K: torch.Tensor) -> torch.Tensor:
        value = logits_K[self.wanted]
        return value if self.against is None else value - logits_K[self.against]


class _Seen(nn.Module):
    """The classifier as a function of one view."""

    def __init__(self, model: FineGrainedClassifier, share: float, rest_ND: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        self.share = share
        self.rest_ND = rest_ND

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return self.model.classify(self.share * self.model._vectors(images_NCHW) + self.rest_ND)


def _library_class(name: str) -> Any:
    try:
        import pytorch_grad_cam
    except ImportError:
        raise missing_extra("explain", "A class map") from None
    return getattr(pytorch_grad_cam, name)
