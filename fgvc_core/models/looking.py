"""Where a convolutional model looks in a picture, and what it says of it.

The class activation map of the answer where the head reads the map's own channels (Zhou et al.
2016, "Learning Deep Features for Discriminative Localization", section 2,
https://arxiv.org/abs/1512.04150), the mean of the part maps where parts are learnt, and
elsewhere the sum of all channels (Wei et al. 2017, "Selective Convolutional Descriptor
Aggregation", section 3.1, https://arxiv.org/abs/1604.04994).
"""

import torch

from fgvc_core.errors import ConfigurationError
from fgvc_core.models.classifier import FineGrainedClassifier
from fgvc_core.models.parts import PartPooling

_SHARE = 0.5
"""Positions at which a map has at least this share of its highest value count as looked at."""


def look(
    model: FineGrainedClassifier, images_NCHW: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits (N, K), and a map of no negative value (N, h, w): where they come from.

    Args:
        model: In evaluation mode, with a backbone that gives a map.
        images_NCHW: Normalised pictures (N, 3, S, S).

    Raises:
        ConfigurationError: if the backbone's map has a single position.
    """
    map_NCHW = model.map(images_NCHW)
    if map_NCHW.shape[2] * map_NCHW.shape[3] < 2:
        raise ConfigurationError(
            "evaluate.zoom needs a backbone that gives a map, and this one gives a vector.",
            why="The crop goes where the map says that the model looks.",
            remedy="Set evaluate.zoom = 0, or take a convolutional backbone, or larger pictures.",
        )
    vectors_ND = model.scaling(model.pooling(map_NCHW))
    if model.mirrored:
        mirrored_ND = model.scaling(model.pooling(model.map(images_NCHW.flip(-1))))
        vectors_ND = (vectors_ND + mirrored_ND) / 2
    logits_NK = model.classify(vectors_ND)
    if isinstance(model.pooling, PartPooling):
        return logits_NK, model.pooling.with_maps(map_NCHW)[1].mean(dim=1)
    activation_NHW = map_NCHW.abs().sum(dim=1)
    weight_KC = _channel_weights(model, map_NCHW.shape[1])
    if weight_KC is None:
        return logits_NK, activation_NHW
    chosen_NC = weight_KC[logits_NK.argmax(dim=1)]
    evidence_NHW = torch.einsum("nc,nchw->nhw", chosen_NC, map_NCHW).clamp_min(0.0)
    # A head that is still zero, or that only speaks against, says nothing of where.
    speaks_N11 = evidence_NHW.amax(dim=(1, 2), keepdim=True) > 0
    return logits_NK, torch.where(speaks_N11, evidence_NHW, activation_NHW)


def centres(look_NHW: torch.Tensor) -> torch.Tensor:
    """(N, 2): row and column of what is looked at, each 0 to 1 of the picture's side.

    >>> centres(torch.tensor([[[0.0, 4.0], [0.0, 0.0]]]))
    tensor([[0.2500, 0.7500]])
    """
    highest_N11 = look_NHW.amax(dim=(1, 2), keepdim=True)
    kept_NHW = look_NHW * (look_NHW >= _SHARE * highest_N11)
    # A map of zeros looks at the middle.
    kept_NHW = torch.where(highest_N11 > 0, kept_NHW, torch.ones_like(kept_NHW))
    total_N = kept_NHW.sum(dim=(1, 2))
    found = []
    for axis, other in ((1, 2), (2, 1)):
        size = look_NHW.shape[axis]
        middles_S = (torch.arange(size, device=look_NHW.device) + 0.5) / size
        found.append((kept_NHW.sum(dim=other) * middles_S).sum(dim=1) / total_N)
    return torch.stack(found, dim=1)


def _channel_weights(model: FineGrainedClassifier, channels: int) -> torch.Tensor | None:
    """(K, C): what each channel adds to a class, where the head reads channels one by one."""
    weight_KD = model.class_vectors()
    if weight_KD is None:
        return None
    if weight_KD.shape[1] == channels:
        return weight_KD
    if model.pooling.kind == "both":
        return weight_KD[:, :channels] + weight_KD[:, channels:]
    return None
