"""Maps of a model's own attention, recorded during a forward pass.

Spatial gates (after CBAM, https://arxiv.org/abs/1807.06521) scale each position. Non-local blocks
(https://arxiv.org/abs/1711.07971) have a weight from each position to every other. For vision
transformers, attention is averaged over heads and followed from the class token, or from the mean
over positions, back to the picture: rollout, Abnar and Zuidema 2020,
https://arxiv.org/abs/2005.00928. Note: attention shows what passes through the network, equally for
every class; it is not a class map.
"""

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from fgvc_core.models.attention import NonLocal, SpatialAttention
from fgvc_core.models.backbones import TimmBackbone
from fgvc_core.models.classifier import FineGrainedClassifier


def attention_maps(
    model: FineGrainedClassifier, views_NHWC: NDArray[np.uint8]
) -> NDArray[np.float32] | None:
    """Attention maps of N pictures.

    Args:
        model: The classifier; it is copied and not changed.
        views_NHWC: uint8 (N, S, S, 3).

    Returns:
        float32 (N, S, S), each scaled to 0..1 (a constant map is 0 everywhere): the mean over the
        model's attention layers. None if no layer attends to positions: channel gates weigh
        channels only, and a plain convolutional network has no attention. Also None behind a
        spatial transformer, whose maps belong to the transformed picture.
    """
    if not isinstance(model.before, nn.Identity):
        return None
    model = copy.deepcopy(model).requires_grad_(False).eval()
    model.mirrored, model.closer, model.middle = False, 0.0, 0.0
    found: list[torch.Tensor] = []
    handles = [
        module.register_forward_hook(_spatial(found) if gate else _non_local(found))
        for module, gate in _places(model)
    ]
    rollout = _Rollout.on(model)
    device = next(model.parameters()).device
    images_NCHW = torch.from_numpy(np.ascontiguousarray(views_NHWC)).permute(0, 3, 1, 2)
    try:
        with torch.no_grad():
            model.embed(model.normalise(images_NCHW.to(device)))
    finally:
        for handle in handles:
            handle.remove()
    if rollout is not None:
        found.append(rollout.map())
    # A gate behind a transformer's pooled vector has one position only: not a map.
    found = [map_N1HW for map_N1HW in found if map_N1HW.shape[2:].numel() > 1]
    if not found:
        return None
    size = views_NHWC.shape[1]
    resized = [
        F.interpolate(m_N1HW.float(), (size, size), mode="bilinear", align_corners=False)
        for m_N1HW in found
    ]
    mean_NHW = torch.stack([_scaled(m_N1HW) for m_N1HW in resized]).mean(dim=0)[:, 0]
    return np.asarray(mean_NHW.cpu(), dtype=np.float32)


def _places(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    return [
        (module, isinstance(module, SpatialAttention))
        for module in model.modules()
        if isinstance(module, SpatialAttention | NonLocal)
    ]


def _spatial(found: list[torch.Tensor]) -> Any:
    def hook(module: SpatialAttention, given: tuple[torch.Tensor], out: torch.Tensor) -> None:
        map_NCHW = given[0]
        pooled_N2HW = torch.cat(
            [map_NCHW.mean(dim=1, keepdim=True), map_NCHW.amax(dim=1, keepdim=True)], dim=1
        )
        found.append(module.conv(pooled_N2HW).sigmoid())

    return hook


def _non_local(found: list[torch.Tensor]) -> Any:
    def hook(module: NonLocal, given: tuple[torch.Tensor], out: torch.Tensor) -> None:
        map_NCHW = given[0]
        query_NCP, key_NCP = (part(map_NCHW).flatten(2) for part in (module.query, module.key))
        alike_NPP = (query_NCP.transpose(1, 2) @ key_NCP * module._scale).softmax(dim=2)
        found.append(alike_NPP.mean(dim=1).unflatten(1, map_NCHW.shape[2:])[:, None])

    return hook


class _Rollout:
    """Attention rollout through all blocks of a timm vision transformer."""

    def __init__(self, grid: tuple[int, int], prefix: int) -> None:
        self._grid, self._prefix = grid, prefix
        self._product_NTT: torch.Tensor | None = None

    @classmethod
    def on(cls, model: FineGrainedClassifier) -> "_Rollout | None":
        """Register hooks on a model; None if it is not a transformer of this kind."""
        network: Any = model.backbone.model if isinstance(model.backbone, TimmBackbone) else None
        grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
        layers = [
            block.attn
            for block in getattr(network, "blocks", ())
            if hasattr(getattr(block, "attn", None), "attn_drop")
        ]
        if grid is None or not layers:
            return None
        watched = cls(tuple(grid), int(getattr(network, "num_prefix_tokens", 0)))
        for layer in layers:
            # The fused kernel does not expose its attention weights.
            layer.fused_attn = False
            layer.attn_drop.register_forward_hook(watched._add)
        return watched

    def _add(self, module: nn.Module, given: Any, weights_NMTT: torch.Tensor) -> None:
        mean_NTT = weights_NMTT.mean(dim=1)
        own_TT = torch.eye(mean_NTT.shape[-1], device=mean_NTT.device)
        step_NTT = (mean_NTT + own_TT) / 2
        self._product_NTT = step_NTT if self._product_NTT is None else step_NTT @ self._product_NTT

    def map(self) -> torch.Tensor:
        """(N, 1, h, w): attention to each position, from the first token or the mean of all."""
        assert self._product_NTT is not None
        rows_NTT = self._product_NTT
        taken_NT = rows_NTT[:, 0] if self._prefix else rows_NTT.mean(dim=1)
        return taken_NT[:, self._prefix :].unflatten(1, self._grid)[:, None]


def _scaled(map_N1HW: torch.Tensor) -> torch.Tensor:
    low_N111 = map_N1HW.amin(dim=(2, 3), keepdim=True)
    range_N111 = map_N1HW.amax(dim=(2, 3), keepdim=True) - low_N111
    return torch.where(range_N111 > 1e-6, (map_N1HW - low_N111) / range_N111.clamp_min(1e-6), 0.0)
