"""The classifier: looks, backbone, attention, pooling, head.

The classifier: backbone, attention, pooling, head.

Further looks at a picture: at its middle, and at where the map of the first look is strong.

In the spirit of Wei et al. 2017, "Selective Convolutional Descriptor Aggregation", section 3.1
(https://arxiv.org/abs/1604.04994: the sum of a map's channels says where the object is), and Fu
et al. 2017, "Look Closer to See Better" (https://openaccess.thecvf.com/content_cvpr_2017/html/
Fu_Look_Closer_to_CVPR_2017_paper.html); nothing is trained for it, so that it goes with cached
features of a frozen backbone. Cost of each: as much again as the first look. A warning: it is cut
from the square that the model sees, and shows no detail that was not in there; where the object
fills the picture already it only loses the rim.

A spatial transformer: looks once, and turns, moves and enlarges the picture before the rest.

Jaderberg et al. 2015, "Spatial Transformer Networks", section 3, https://arxiv.org/abs/1506.02025.
A small network reads six numbers of an affine map off a thumbnail of the picture; the picture is
sampled along it. It starts as the identity (the last layer is zero), has no normalisation, and
looks at each picture alone, so that it may be used under differential privacy. Cost: a few
hundredths of a small network's step, and one more sampling of the picture. A warning: it learns
by what the classifier's error says of six numbers, which is little; it may drift off the subject,
and random views and a test-time zoom often do more.
"""

import torch
from torch import nn
from torch.nn import functional as F

from fgvc_core.models.backbones import Backbone
from fgvc_core.models.pooling import AnyPooling, PartPooling, Scaling
from fgvc_core.models.trainable import Policy, batch_norms
from fgvc_core.models.weights import InputSpec

LEAST, MOST = 0.2, 0.5
"""Bounds of the closer square's half side, as shares of the side."""


def closer_look(images_NCHW: torch.Tensor, map_NCHW: torch.Tensor, spread: float) -> torch.Tensor:
    """Squares cut from pictures around where their maps are strong, at the pictures' size.

    The centre is the centroid of what the map's sum over channels has above its own mean; the
    half side is ``spread`` standard deviations of it, along the axis where there are more.

    Args:
        images_NCHW: (N, C, S, S).
        map_NCHW: Their maps (N, D, h, w).
        spread: Above 0.

    Returns:
        (N, C, S, S), bicubic.
    """
    total_NHW = map_NCHW.sum(dim=1)
    above_NHW = (total_NHW - total_NHW.mean(dim=(1, 2), keepdim=True)).clamp_min(0.0)
    # A map that is the same everywhere looks at all of it.
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
    """The middle squares of pictures, at the pictures' size: (N, C, S, S), bicubic.

    Args:
        images_NCHW: (N, C, S, S).
        share: Of the side, above 0 to 1.
    """
    half_N = images_NCHW.new_full((images_NCHW.shape[0],), share / 2)
    at_N = torch.full_like(half_N, 0.5)
    return _cut(images_NCHW, at_N, at_N, half_N)


def _cut(
    images_NCHW: torch.Tensor, row_N: torch.Tensor, column_N: torch.Tensor, half_N: torch.Tensor
) -> torch.Tensor:
    side = images_NCHW.shape[-1]
    # From -1 to 1 over the picture, at the middles of the cut square's pixels.
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
"""Side of what the small network sees, in pixels."""


class SpatialTransformer(nn.Module):
    """Pictures to pictures of the same size."""

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
        """(N, 2, 3): output coordinates to input coordinates, each -1 to 1 over the picture."""
        thumbnails = F.interpolate(
            images_NCHW, size=(THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=False
        )
        changes_N23 = self.map(self.look(thumbnails.contiguous())).view(-1, 2, 3)
        return changes_N23 + torch.eye(2, 3, dtype=changes_N23.dtype, device=changes_N23.device)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) to the same, the border repeated where the map leaves it; N may be 0."""
        if not len(images_NCHW):
            return images_NCHW
        grid_NHW2 = F.affine_grid(
            self.affine(images_NCHW), list(images_NCHW.shape), align_corners=False
        )
        return F.grid_sample(images_NCHW, grid_NHW2, padding_mode="border", align_corners=False)


class FineGrainedClassifier(nn.Module):
    """One classifier.

    Args:
        backbone: Pictures to a map.
        attention: A map to a map of the same shape.
        pooling: A map to a vector.
        scaling: What is done to the pooled vector; it has no parameters.
        dropout: Share of the vector's entries dropped in training, 0 to 1.
        head: A vector to logits.
        spec: How pictures have to look.
        mirrored: Whether, outside training, a picture's vector is the mean of its own and its
            mirror image's.
        before: What a picture passes first, of the same size; None: nothing.
        closer: If above 0: outside training, a picture's vector is the mean of its own and a
            closer look's; see :func:`closer_look`.
        middle: Likewise with a look at the middle; see :func:`middle_look`.
    """

    def __init__(
        self,
        backbone: Backbone,
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
        """Whether BatchNorm keeps its statistics as they are, in training too."""
        self.adapt(spec)

    def adapt(self, spec: InputSpec) -> None:
        """Expect pictures that look so from now on."""
        self.input = spec
        self.register_buffer("_mean", torch.tensor(spec.mean)[:, None, None] * 255, False)
        self.register_buffer("_std", torch.tensor(spec.std)[:, None, None] * 255, False)

    @property
    def feature_dim(self) -> int:
        """D, the length of the vector before the head."""
        return self.pooling.out_dim

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The backbone's stages, from the picture on."""
        return self.backbone.stage_names

    def normalise(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """uint8 (N, 3, S, S) to normalised float32, channels last in memory.

        That layout, which the weights have too, took 20 to 30 % off a CPU's step here.
        """
        values_NCHW = (images_NCHW.float() - self._mean) / self._std  # type: ignore[operator]
        return values_NCHW.contiguous(memory_format=torch.channels_last)

    def embed_with_parts(
        self, images_NCHW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As :meth:`embed`, for training; also where each part that trains looks, (N, K, h, w)."""
        pooling = self.pooling
        if not isinstance(pooling, PartPooling) or not pooling.find.weight.requires_grad:
            return self.embed(images_NCHW), None
        vectors_ND, maps_NKHW = pooling.with_maps(self.map(images_NCHW))
        return self.scaling(vectors_ND), maps_NKHW

    def embed(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Normalised pictures (N, 3, S, S) to vectors (N, D)."""
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
        """Vectors of one look, its map given where it is there, and its mirror image if wanted."""
        map_NCHW = self.map(images_NCHW) if map_NCHW is None else map_NCHW
        vectors_ND = self.scaling(self.pooling(map_NCHW))
        if not self.mirrored:
            return vectors_ND
        return (vectors_ND + self._vectors(images_NCHW.flip(-1))) / 2

    def _vectors(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return self.scaling(self.pooling(self.map(images_NCHW)))

    def map(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Normalised pictures (N, 3, S, S) to what is pooled, (N, C, h, w)."""
        return self.attention(self.backbone(self.before(images_NCHW)))

    def classify(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Vectors (N, D) to logits (N, K)."""
        return self.head(self.dropout(features_ND))

    def class_vectors(self) -> torch.Tensor | None:
        """The head's own vector for each class, (K, D); None where it has none."""
        weight = getattr(self.head, "weight", None)
        fits = isinstance(weight, torch.Tensor) and weight.shape[-1] == self.feature_dim
        return weight if fits else None

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Normalised pictures (N, 3, S, S) to logits (N, K)."""
        return self.classify(self.embed(images_NCHW))

    def train(self, mode: bool = True) -> "FineGrainedClassifier":
        """Training mode for what trains; what is frozen stays as in evaluation.

        A frozen BatchNorm in training mode would still change its statistics.
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
