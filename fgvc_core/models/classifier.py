"""The classifier: spatial transformer, backbone, attention, pooling and head, plus extra looks.

Extra looks, at the middle of the picture and around the strong part of the first look's map,
follow Wei et al. 2017, "Selective Convolutional Descriptor Aggregation", section 3.1
(https://arxiv.org/abs/1604.04994: the sum of a map's channels locates the object), and Fu et al.
2017, "Look Closer to See Better" (https://openaccess.thecvf.com/content_cvpr_2017/html/
Fu_Look_Closer_to_CVPR_2017_paper.html). They are not trained, so they work with cached features of
a frozen backbone. Each costs as much as the first look. They are cut from the model's input square
and add no detail; if the object already fills the picture, they only lose its rim.

The spatial transformer rotates, moves and enlarges the picture: Jaderberg et al. 2015, "Spatial
Transformer Networks", section 3, https://arxiv.org/abs/1506.02025. A small network predicts the
six numbers of an affine map from a thumbnail, and the picture is resampled. It starts as the
identity (the last layer is zero), has no normalization and processes each picture alone, so that
differential privacy allows it. Cost: a few hundredths of a small network's step, and one
resampling. It learns slowly, only from the classifier's loss, and may drift off the subject;
random views and a test-time zoom often help more.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from fgvc_core.models.pooling import AnyPooling, PartPooling, Scaling
from fgvc_core.models.trainable import Policy, batch_norms
from fgvc_core.models.weights import InputSpec

if TYPE_CHECKING:
    from fgvc_core.models.joined import AnyBackbone

LEAST, MOST = 0.2, 0.5
"""Bounds of the closer square's half side, as shares of the side."""


def closer_look(images_NCHW: torch.Tensor, map_NCHW: torch.Tensor, spread: float) -> torch.Tensor:
    """Cut squares around the strong part of the maps, resized to the pictures' size.

    The center is the centroid of the map's channel sum above its mean; the half side is
    ``spread`` standard deviations, along the axis with the larger one.

    Args:
        images_NCHW: (N, C, S, S).
        map_NCHW: Their maps (N, D, h, w).
        spread: Above 0.

    Returns:
        (N, C, S, S), bicubic.
    """
    total_NHW = map_NCHW.sum(dim=1)
    above_NHW = (total_NHW - total_NHW.mean(dim=(1, 2), keepdim=True)).clamp_min(0.0)
    # The constant keeps a uniform map valid: it selects the whole picture.
    above_NHW = above_NHW + 1e-12
    share_NHW = above_NHW / above_NHW.sum(dim=(1, 2), keepdim=True)
    middle_N, wide_N = [], []
    for axis in (1, 2):
        size = share_NHW.shape[axis]
        at_S = (torch.arange(size, device=share_NHW.device) + 0.5) / size
        along_NS = share_NHW.sum(dim=3 - axis)
        found_N = (along_NS * at_S).sum(dim=1)
        middle_N.append(found_N)
        wide_N.append((along_NS * (at_S - found_N[:, None]).square()).sum(dim=1).sqrt())
    half_N = (spread * torch.maximum(*wide_N)).clamp(LEAST, MOST)
    row_N, column_N = (torch.minimum(torch.maximum(m, half_N), 1 - half_N) for m in middle_N)
    return _cut(images_NCHW, row_N, column_N, half_N)


def middle_look(images_NCHW: torch.Tensor, share: float) -> torch.Tensor:
    """Cut the middle squares, resized to the pictures' size: (N, C, S, S), bicubic.

    Args:
        images_NCHW: (N, C, S, S).
        share: Share of the side, above 0 to 1.
    """
    half_N = images_NCHW.new_full((images_NCHW.shape[0],), share / 2)
    at_N = torch.full_like(half_N, 0.5)
    return _cut(images_NCHW, at_N, at_N, half_N)


def _cut(
    images_NCHW: torch.Tensor, row_N: torch.Tensor, column_N: torch.Tensor, half_N: torch.Tensor
) -> torch.Tensor:
    side = images_NCHW.shape[-1]
    # Pixel centers of the cut square, in coordinates from -1 to 1.
    step_S = (2 * torch.arange(side, device=images_NCHW.device) + 1) / side - 1
    down_NS = 2 * row_N[:, None] - 1 + 2 * half_N[:, None] * step_S
    across_NS = 2 * column_N[:, None] - 1 + 2 * half_N[:, None] * step_S
    grid_NHW2 = torch.stack(
        [
            across_NS[:, None, :].expand(-1, side, -1),
            down_NS[:, :, None].expand(-1, -1, side),
        ],
        dim=-1,
    )
    return F.grid_sample(
        images_NCHW, grid_NHW2, mode="bicubic", padding_mode="border", align_corners=False
    )


THUMBNAIL = 32
"""Side of the small network's input, in pixels."""


class SpatialTransformer(nn.Module):
    """Maps pictures to pictures of the same size by a learned affine map."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(8, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(256, 32),
            nn.ReLU(),
        )
        self.map = nn.Linear(32, 6)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def affine(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, 2, 3): from output to input coordinates, each -1 to 1 over the picture."""
        thumbnails = F.interpolate(
            images_NCHW, size=(THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=False
        )
        changes_N23 = self.map(self.look(thumbnails.contiguous())).view(-1, 2, 3)
        return changes_N23 + torch.eye(2, 3, dtype=changes_N23.dtype, device=changes_N23.device)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Map (N, 3, S, S) to the same shape, with border padding; N may be 0."""
        if not len(images_NCHW):
            return images_NCHW
        grid_NHW2 = F.affine_grid(
            self.affine(images_NCHW), list(images_NCHW.shape), align_corners=False
        )
        return F.grid_sample(images_NCHW, grid_NHW2, padding_mode="border", align_corners=False)


class FineGrainedClassifier(nn.Module):
    """A classifier composed of the parts of ``[model]``.

    Args:
        backbone: Maps pictures to a feature map.
        attention: Maps a feature map to one of the same shape.
        pooling: Maps a feature map to a vector.
        scaling: Applied to the pooled vector; it has no parameters.
        dropout: Share of the vector's entries dropped in training, 0 to 1.
        head: Maps a vector to logits.
        spec: Preprocessing of the pictures.
        mirrored: Outside training, average a picture's vector with its mirror image's.
        before: Applied to the pictures first, keeping their size; None: nothing.
        closer: If above 0, outside training, also average with the vector of a closer look;
            see :func:`closer_look`.
        middle: If above 0, likewise with a look at the middle; see :func:`middle_look`.
    """

    def __init__(
        self,
        backbone: "AnyBackbone",
        attention: nn.Module,
        pooling: AnyPooling,
        scaling: Scaling,
        dropout: float,
        head: nn.Module,
        spec: InputSpec,
        mirrored: bool = False,
        before: nn.Module | None = None,
        closer: float = 0.0,
        middle: float = 0.0,
    ) -> None:
        super().__init__()
        self.before = before if before is not None else nn.Identity()
        self.backbone = backbone
        self.attention = attention
        self.pooling = pooling
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout)
        self.head = head
        self.mirrored = mirrored
        self.closer = closer
        self.middle = middle
        self.norm: Policy = "batch"
        self.fixed_statistics = False
        """Whether BatchNorm keeps its statistics even in training."""
        self.adapt(spec)

    def adapt(self, spec: InputSpec) -> None:
        """Change the expected preprocessing."""
        self.input = spec
        self.register_buffer("_mean", torch.tensor(spec.mean)[:, None, None] * 255, False)
        self.register_buffer("_std", torch.tensor(spec.std)[:, None, None] * 255, False)

    @property
    def feature_dim(self) -> int:
        """D, the length of the vector before the head."""
        return self.pooling.out_dim

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The backbone's stages, from input to output."""
        return self.backbone.stage_names

    def normalise(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Map uint8 (N, 3, S, S) to normalized float32 in channels-last memory format.

        With weights in the same format, this made a training step on a CPU 20 to 30 % faster.
        """
        values_NCHW = (images_NCHW.float() - self._mean) / self._std  # type: ignore[operator]
        return values_NCHW.contiguous(memory_format=torch.channels_last)

    def embed_with_parts(
        self, images_NCHW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Like :meth:`embed`, for training; also maps of trainable parts, (N, K, h, w), or None."""
        pooling = self.pooling
        if not isinstance(pooling, PartPooling) or not pooling.find.weight.requires_grad:
            return self.embed(images_NCHW), None
        vectors_ND, maps_NKHW = pooling.with_maps(self.map(images_NCHW))
        return self.scaling(vectors_ND), maps_NKHW

    def embed(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Map normalized pictures (N, 3, S, S) to vectors (N, D)."""
        if self.training:
            return self._vectors(images_NCHW)
        map_NCHW = self.map(images_NCHW)
        vectors_ND, looks = self._pooled(images_NCHW, map_NCHW), 1
        if self.middle:
            middle_NCHW = middle_look(images_NCHW, self.middle)
            vectors_ND, looks = vectors_ND + self._pooled(middle_NCHW), looks + 1
        if self.closer:
            nearer_NCHW = closer_look(images_NCHW, map_NCHW, self.closer)
            vectors_ND, looks = vectors_ND + self._pooled(nearer_NCHW), looks + 1
        return vectors_ND / looks if looks > 1 else vectors_ND

    def _pooled(
        self, images_NCHW: torch.Tensor, map_NCHW: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Vectors of one look, averaged with the mirror image if set; ``map_NCHW`` saves a pass."""
        map_NCHW = self.map(images_NCHW) if map_NCHW is None else map_NCHW
        vectors_ND = self.pooled(map_NCHW)
        if not self.mirrored:
            return vectors_ND
        return (vectors_ND + self._vectors(images_NCHW.flip(-1))) / 2

    def _vectors(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return self.pooled(self.map(images_NCHW))

    def pooled(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Map feature maps (N, C, h, w) to vectors (N, D)."""
        return self.scaling(self.pooling(map_NCHW))

    def map(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Map normalized pictures (N, 3, S, S) to the feature map before pooling, (N, C, h, w)."""
        return self.attention(self.backbone(self.before(images_NCHW)))

    def classify(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Map vectors (N, D) to logits (N, K)."""
        return self.head(self.dropout(features_ND))

    def class_vectors(self) -> torch.Tensor | None:
        """One vector per class from the head, (K, D); None if it has none."""
        weight = getattr(self.head, "weight", None)
        fits = isinstance(weight, torch.Tensor) and weight.shape[-1] == self.feature_dim
        return weight if fits else None

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Map normalized pictures (N, 3, S, S) to logits (N, K)."""
        return self.classify(self.embed(images_NCHW))

    def train(self, mode: bool = True) -> "FineGrainedClassifier":
        """Set training mode for trainable parts only; frozen parts stay in evaluation mode.

        A frozen BatchNorm in training mode would still update its statistics.
        """
        super().train(mode)
        if mode:
            for module in (self.before, self.backbone, self.attention, self.pooling):
                _settle(module)
            if self.fixed_statistics:
                for _, norm in batch_norms(self):
                    norm.eval()
        return self


def _settle(module: nn.Module) -> None:
    own = list(module.parameters())
    if own and not any(p.requires_grad for p in own):
        module.eval()
        return
    for child in module.children():
        _settle(child)
