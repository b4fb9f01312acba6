"""Sums of clipped per-unit gradients: a loop over units, and closed form for heads.

Both give the same float64 sum for the same draws; a third engine, Opacus, is in
:mod:`fgvc_core.privacy.hooks`. A unit's gradient is summed over its pictures (its views
averaged), counts as zero if any of it is not finite, and is then clipped.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fgvc_core.privacy.standardised import fixed_weights
from fgvc_core.privacy.units import clip_scales

CANCELLATION = 2.0**-40
"""Share of a gradient's squared parts by which rounding may make its squared norm too small."""

LossOf = Callable[[torch.Tensor], torch.Tensor]
"""Positions (B,) to the losses (B,) of the pictures there, in a fresh random view."""


@dataclass(frozen=True)
class UnitBatch:
    """The pictures of the units drawn for one step.

    Attributes:
        positions_B: int64, positions of examples; all examples of each unit drawn.
        units_B: int64, 0 to U - 1, which of the drawn units each belongs to.
        count: U; a unit without examples here is possible and adds nothing.
    """

    positions_B: NDArray[np.int64]
    units_B: NDArray[np.int64]
    count: int


@dataclass(frozen=True)
class ClippedSum:
    """What a step computes before noise.

    Attributes:
        total_D: float64 (D,), the sum of the units' clipped gradients, all parameters in a row.
        unclipped: How many units' gradients were within the bound.
    """

    total_D: torch.Tensor
    unclipped: int


class GradientEngine(Protocol):
    """Computes clipped sums for one model."""

    def session(self) -> AbstractContextManager[None]:
        """Around many calls: what an engine attaches to the model, it takes off at the end."""
        ...

    def clipped_sum(self, batch: UnitBatch, bound: float) -> ClippedSum:
        """See :class:`ClippedSum`; an empty batch gives zeros without a forward."""
        ...


class LoopEngine:
    """One protected unit at a time: exact, lean, and on a CPU the fastest.

    Args:
        parameters: What trains, in order.
        losses: Per-picture losses of the present model.
        views: Random views of each picture, averaged.
        at_once: Most pictures (views counted) of a unit that are held at once.
        model: What the losses are computed with; with it, what all units share of a forward
            is done once a step.
    """

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        losses: LossOf,
        views: int = 1,
        at_once: int = 1 << 30,
        model: torch.nn.Module | None = None,
    ) -> None:
        self._model = torch.nn.Module() if model is None else model
        self._parameters = parameters
        self._losses = losses
        self._views = views
        self._at_once = at_once

    def session(self) -> AbstractContextManager[None]:
        """Nothing is attached."""
        return nullcontext()

    def clipped_sum(self, batch: UnitBatch, bound: float) -> ClippedSum:
        """See :class:`GradientEngine`."""
        device = self._parameters[0].device
        sizes = [parameter.numel() for parameter in self._parameters]
        total_D = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        own_D = torch.zeros_like(total_D)
        parts = own_D.split(sizes)
        unclipped = batch.count
        order = torch.from_numpy(np.argsort(batch.units_B, kind="stable"))
        counts = np.bincount(batch.units_B, minlength=batch.count).tolist()
        with fixed_weights(self._model):
            for at in order.split(counts) if len(order) else ():
                if not len(at):
                    continue
                positions = torch.from_numpy(batch.positions_B)[at].repeat_interleave(self._views)
                for number, piece in enumerate(positions.split(self._at_once)):
                    self._add_gradient(piece, parts, afresh=number == 0)
                scale = float(clip_scales(np.array([float(own_D.dot(own_D))]), bound)[0])
                unclipped -= scale < 1.0
                if scale > 0.0:
                    total_D.add_(own_D, alpha=scale)
        return ClippedSum(total_D, unclipped)

    def _add_gradient(
        self, positions: torch.Tensor, parts: tuple[torch.Tensor, ...], afresh: bool
    ) -> None:
        loss = self._losses(positions).sum() / self._views
        # Retained is what units share; a unit's own graph goes with its loss.
        gradients = torch.autograd.grad(
            loss, self._parameters, retain_graph=True, allow_unused=True
        )
        for part, gradient in zip(parts, gradients, strict=True):
            if gradient is None:
                if afresh:
                    part.zero_()
            elif afresh:
                part.copy_(gradient.reshape(-1))
            else:
                part.add_(gradient.reshape(-1))


@dataclass(frozen=True)
class HeadView:
    """A linear or cosine head as the closed form sees it.

    Attributes:
        weight_KD: The head's weight.
        bias_K: Its bias, or None.
        scale: The cosine head's scale; None for a linear head.
        smoothing: Label smoothing of the loss, 0 to 1.
    """

    weight_KD: torch.Tensor
    bias_K: torch.Tensor | None
    scale: float | None
    smoothing: float


class ClosedFormEngine:
    """Per-unit norms of a head's gradient from inner products, without the gradients.

    A picture's gradient of row k is d_k times a vector (Goodfellow 2015,
    https://arxiv.org/abs/1510.01799): x itself in a linear head, the part of x's direction
    that is orthogonal to the row's in a cosine head. Inner products of two pictures'
    gradients follow from those of their features. What cancels in these products may leave
    a norm too small, by as much as a server likes that sends rows of length 1e-12 along one
    picture's features: norms are taken as large as rounding may have made them small.

    Args:
        head: Reads the head as it is now.
        features_ND: float32 (N, D) of all examples.
        labels_N: int64 (N,).
    """

    def __init__(
        self, head: Callable[[], HeadView], features_ND: torch.Tensor, labels_N: torch.Tensor
    ) -> None:
        self._head = head
        self._features_ND = features_ND
        self._labels_N = labels_N

    def session(self) -> AbstractContextManager[None]:
        """Nothing is attached."""
        return nullcontext()

    def clipped_sum(self, batch: UnitBatch, bound: float) -> ClippedSum:
        """See :class:`GradientEngine`; the weight's values first, then the bias's."""
        head = self._head()
        # Small, and in float64: the CPU's work wherever the model is.
        weight_KD = head.weight_KD.detach().cpu().double()
        if not len(batch.positions_B):
            size = weight_KD.numel() + (head.bias_K is not None) * len(weight_KD)
            return ClippedSum(torch.zeros(size, dtype=torch.float64), batch.count)
        rows = torch.from_numpy(batch.positions_B)
        inputs_BD = self._features_ND[rows].double()
        if head.scale is None:
            push_BK, along_BK, directions_KD = self._linear(head, inputs_BD, weight_KD, rows)
        else:
            inputs_BD, push_BK, along_BK, directions_KD = self._cosine(
                head, inputs_BD, weight_KD, rows
            )
        squares_U = _squares(inputs_BD, push_BK, along_BK, head.bias_K is not None, batch)
        scales_U = torch.from_numpy(clip_scales(squares_U, bound))
        scales_B = scales_U[torch.from_numpy(batch.units_B)]
        kept_B = scales_B > 0
        # Taken out, not multiplied by zero: zero times infinity is no number.
        push_BK = push_BK[kept_B] * scales_B[kept_B, None]
        total_KD = push_BK.T @ inputs_BD[kept_B]
        if along_BK is not None:
            # Weights that are no numbers leave no unit, and must not leave their mark either.
            directions_KD = directions_KD.nan_to_num(0.0, 0.0, 0.0)
            total_KD -= (push_BK * along_BK[kept_B]).sum(dim=0)[:, None] * directions_KD
        parts = [total_KD.reshape(-1)]
        if head.bias_K is not None:
            parts.append(push_BK.sum(dim=0))
        return ClippedSum(torch.cat(parts), int((scales_U >= 1.0).sum()))

    def _linear(
        self, head: HeadView, inputs_BD: torch.Tensor, weight_KD: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, None, torch.Tensor]:
        logits_BK = inputs_BD @ weight_KD.T
        if head.bias_K is not None:
            logits_BK = logits_BK + head.bias_K.detach().cpu().double()
        return _pushes(logits_BK, self._labels_N[rows], head.smoothing), None, weight_KD

    def _cosine(
        self, head: HeadView, inputs_BD: torch.Tensor, weight_KD: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        assert head.scale is not None
        lengths_K1 = weight_KD.norm(dim=1, keepdim=True).clamp_min(1e-12)
        directions_KD = weight_KD / lengths_K1
        length_B1 = inputs_BD.norm(dim=1, keepdim=True)
        inputs_BD = torch.where(length_B1 > 1e-12, inputs_BD / length_B1.clamp_min(1e-12), 0.0)
        along_BK = inputs_BD @ directions_KD.T
        push_BK = _pushes(head.scale * along_BK, self._labels_N[rows], head.smoothing)
        return inputs_BD, push_BK * head.scale / lengths_K1.T, along_BK, directions_KD


def size_of(parameters: list[torch.nn.Parameter]) -> int:
    """D, how many values all parameters have together."""
    return sum(parameter.numel() for parameter in parameters)


def _pushes(logits_BK: torch.Tensor, labels_B: torch.Tensor, smoothing: float) -> torch.Tensor:
    """(B, K), the cross-entropy's gradient in the logits."""
    classes = logits_BK.shape[1]
    wanted_BK = F.one_hot(labels_B, classes).double() * (1 - smoothing) + smoothing / classes
    return logits_BK.softmax(dim=1) - wanted_BK


def _squares(
    inputs_BD: torch.Tensor,
    push_BK: torch.Tensor,
    along_BK: torch.Tensor | None,
    bias: bool,
    batch: UnitBatch,
) -> NDArray[np.float64]:
    """float64 (U,), squared norms of the units' summed gradients."""
    parts_B = push_BK.square().sum(dim=1) * (inputs_BD.square().sum(dim=1) + bias)
    squares_B = parts_B
    if along_BK is not None:
        squares_B = squares_B - (push_BK * along_BK).square().sum(dim=1)
    squares_U = np.bincount(batch.units_B, weights=squares_B.numpy(), minlength=batch.count)
    lengths_U = np.bincount(batch.units_B, weights=parts_B.sqrt().numpy(), minlength=batch.count)
    order = torch.from_numpy(np.argsort(batch.units_B, kind="stable"))
    sizes_U = np.bincount(batch.units_B, minlength=batch.count)
    for unit, at in enumerate(order.split(sizes_U.tolist())):
        if len(at) < 2:
            continue
        inner = inputs_BD[at] @ inputs_BD[at].T + bias
        pushes = push_BK[at] @ push_BK[at].T
        total = (inner * pushes).sum()
        if along_BK is not None:
            turned = push_BK[at] * along_BK[at]
            total = total - (turned @ turned.T).sum()
        squares_U[unit] = float(total)
    with np.errstate(over="ignore", invalid="ignore"):
        squares_U = np.maximum(squares_U, 0.0) + CANCELLATION * lengths_U**2
    return np.where(np.isnan(squares_U), np.inf, squares_U)
