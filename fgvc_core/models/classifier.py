"""The classifier: backbone, attention, pooling, head."""

import torch
from torch import nn

from fgvc_core.models.backbones import Backbone
from fgvc_core.models.closer import closer_look, middle_look
from fgvc_core.models.inputs import InputSpec
from fgvc_core.models.normalisation import Policy, batch_norms
from fgvc_core.models.parts import PartPooling
from fgvc_core.models.pooling import AnyPooling
from fgvc_core.models.scaling import Scaling


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
