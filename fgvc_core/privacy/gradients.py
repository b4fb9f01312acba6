"""Sums of clipped per-unit gradients: a loop over units, and closed form for heads.

Both give the same float64 sum for the same draws; a third engine, Opacus, is in
:mod:`fgvc_core.privacy.hooks`. A unit's gradient is summed over its pictures (its views
averaged), counts as zero if any of it is not finite, and is then clipped. By how much follows
from its own pictures, to the bit, whoever is drawn with it; and no unit is too large for memory.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fgvc_core.privacy.rows import AT_ONCE, row_products, row_sums
from fgvc_core.privacy.sampling import clip_scales
from fgvc_core.privacy.standardised import fixed_weights

CANCELLATION = 2.0**-40
"""Share of a gradient's squared parts by which rounding may make its squared norm too small."""

UNBOUNDED = 1 << 30
"""Pictures at once where nothing bounds them."""

CANCELLING = 64.0
"""A unit whose parts are together this many times as long as their sum is summed by itself: in
one sum with other units its parts would be rounded by more than
:data:`~fgvc_core.privacy.noise.SUMMING` allows for."""

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
        at_once: int = UNBOUNDED,
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
        head = _Read.of(self._head())
        total = head.zeros()
        unclipped = batch.count
        order = np.argsort(batch.units_B, kind="stable")
        positions_B, units_B = batch.positions_B[order], batch.units_B[order]
        for start, stop in whole_units(units_B, AT_ONCE) if len(order) else ():
            rows = torch.from_numpy(positions_B[start:stop])
            if stop - start > AT_ONCE:
                unclipped -= self._add_large(head, rows, bound, total)
            else:
                unclipped -= self._add_units(head, rows, units_B[start:stop], bound, total)
        return ClippedSum(torch.cat([part.reshape(-1) for part in total]), unclipped)

    def _add_units(
        self,
        head: "_Read",
        rows: torch.Tensor,
        units_B: NDArray[np.int64],
        bound: float,
        total: list[torch.Tensor],
    ) -> int:
        """Add whole units from the inner products of their pictures; how many were clipped."""
        pushed = self._pushed(head, rows)
        units_B = np.cumsum(np.diff(units_B, prepend=units_B[0]) != 0)
        squares_U, lengths_U = _squares(pushed, head.bias_K is not None, units_B)
        scales_U = clip_scales(squares_U, bound)
        # What cancels within a unit would be rounded together with the other units' parts.
        with np.errstate(over="ignore", invalid="ignore"):
            cancelling_U = (lengths_U > CANCELLING * np.sqrt(squares_U)) & (scales_U > 0)
        clipped = int((scales_U[~cancelling_U] < 1.0).sum())
        for unit in np.flatnonzero(cancelling_U).tolist():
            clipped += self._add_large(head, rows[units_B == unit], bound, total)
        scales_U[cancelling_U] = 0.0
        scales_B = torch.from_numpy(scales_U[units_B])
        # Taken out, not multiplied by zero: zero times infinity is no number.
        kept_B = scales_B > 0
        kept = pushed.take(kept_B)
        kept.push_BK.mul_(scales_B[kept_B, None])
        head.add(kept, total)
        return clipped

    def _add_large(
        self, head: "_Read", rows: torch.Tensor, bound: float, total: list[torch.Tensor]
    ) -> int:
        """Add one unit whose gradient is formed itself, piece by piece; whether it was clipped.

        Inner products of very many pictures would take memory with the square of their number;
        and of parts that cancel, what is left has a norm that is known by itself alone.
        """
        own = head.zeros()
        for piece in rows.split(AT_ONCE):
            head.add(self._pushed(head, piece), own)
        square = sum(float(part.reshape(-1).dot(part.reshape(-1))) for part in own)
        scale = float(clip_scales(np.array([np.inf if np.isnan(square) else square]), bound)[0])
        if scale > 0:
            for part, summand in zip(total, own, strict=True):
                part.add_(summand, alpha=scale)
        return int(scale < 1.0)

    def _pushed(self, head: "_Read", rows: torch.Tensor) -> "_Pushed":
        """The pictures' vectors, and how far each pushes each class's row along them."""
        inputs_BD = self._features_ND[rows].cpu().double()
        labels_B = self._labels_N[rows]
        if head.scale is None:
            logits_BK = row_products(inputs_BD, head.weight_KD)
            if head.bias_K is not None:
                logits_BK = logits_BK + head.bias_K
            return _Pushed(inputs_BD, _pushes(logits_BK, labels_B, head.smoothing), None)
        length_B1 = row_sums(inputs_BD.square()).sqrt()[:, None]
        inputs_BD = torch.where(length_B1 > 1e-12, inputs_BD / length_B1.clamp_min(1e-12), 0.0)
        along_BK = row_products(inputs_BD, head.directions_KD)
        push_BK = _pushes(head.scale * along_BK, labels_B, head.smoothing)
        return _Pushed(inputs_BD, push_BK * head.scale / head.lengths_K1.T, along_BK)


@dataclass(frozen=True)
class _Pushed:
    """Pictures' gradients in parts: row k's is push_k times (input - along_k * direction_k)."""

    inputs_BD: torch.Tensor
    push_BK: torch.Tensor
    along_BK: torch.Tensor | None

    def take(self, kept_B: torch.Tensor) -> "_Pushed":
        along_BK = None if self.along_BK is None else self.along_BK[kept_B]
        return _Pushed(self.inputs_BD[kept_B], self.push_BK[kept_B], along_BK)


@dataclass(frozen=True)
class _Read:
    """A head as it is now. It is small, and in float64: the CPU's work wherever the model is."""

    weight_KD: torch.Tensor
    bias_K: torch.Tensor | None
    scale: float | None
    smoothing: float
    lengths_K1: torch.Tensor
    directions_KD: torch.Tensor

    @classmethod
    def of(cls, head: HeadView) -> "_Read":
        weight_KD = head.weight_KD.detach().cpu().double()
        bias_K = None if head.bias_K is None else head.bias_K.detach().cpu().double()
        lengths_K1 = weight_KD.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return cls(
            weight_KD, bias_K, head.scale, head.smoothing, lengths_K1, weight_KD / lengths_K1
        )

    def zeros(self) -> list[torch.Tensor]:
        """A gradient of zeros: of the weight, and of the bias where there is one."""
        weight = torch.zeros_like(self.weight_KD)
        return [weight] if self.bias_K is None else [weight, torch.zeros_like(self.bias_K)]

    def add(self, pushed: _Pushed, total: list[torch.Tensor]) -> None:
        """Add pictures' gradients."""
        total[0] += pushed.push_BK.T @ pushed.inputs_BD
        if pushed.along_BK is not None:
            # Weights that are no numbers leave no unit, and must not leave their mark either.
            directions_KD = self.directions_KD.nan_to_num(0.0, 0.0, 0.0)
            total[0] -= (pushed.push_BK * pushed.along_BK).sum(dim=0)[:, None] * directions_KD
        if self.bias_K is not None:
            total[1] += pushed.push_BK.sum(dim=0)


def whole_units(units_B: NDArray[np.int64], at_once: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of stretches of whole units, each of ``at_once`` rows at most or of one unit.

    Args:
        units_B: Sorted, at least one.
        at_once: At least 1.
    """
    start = stop = 0
    for end in [*(np.flatnonzero(np.diff(units_B)) + 1).tolist(), len(units_B)]:
        if end - start > at_once and stop > start:
            yield start, stop
            start = stop
        stop = end
    yield start, stop


def size_of(parameters: list[torch.nn.Parameter]) -> int:
    """D, how many values all parameters have together."""
    return sum(parameter.numel() for parameter in parameters)


def _pushes(logits_BK: torch.Tensor, labels_B: torch.Tensor, smoothing: float) -> torch.Tensor:
    """(B, K), the cross-entropy's gradient in the logits."""
    classes = logits_BK.shape[1]
    wanted_BK = F.one_hot(labels_B, classes).double() * (1 - smoothing) + smoothing / classes
    return logits_BK.softmax(dim=1) - wanted_BK


def _squares(
    pushed: _Pushed, bias: bool, units_B: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Twice float64 (U,): squared norms of the units' summed gradients, and what these are made of.

    The second is the sum of the lengths of all that is added up within the unit, whether or not
    it cancels.

    Args:
        pushed: The pictures' gradients.
        bias: Whether the head has one.
        units_B: int64, sorted, 0 to U - 1, each of them there.
    """
    inputs_BD, push_BK, along_BK = pushed.inputs_BD, pushed.push_BK, pushed.along_BK
    parts_B = row_sums(push_BK.square()) * (row_sums(inputs_BD.square()) + bias)
    squares_B = parts_B
    if along_BK is not None:
        squares_B = squares_B - row_sums((push_BK * along_BK).square())
    sizes_U = np.bincount(units_B)
    squares_U = np.asarray(np.bincount(units_B, squares_B.numpy()), dtype=np.float64)
    lengths_U = np.asarray(np.bincount(units_B, parts_B.sqrt().numpy()), dtype=np.float64)
    stops_U = np.cumsum(sizes_U)
    for unit in np.flatnonzero(sizes_U > 1).tolist():
        # Copies: a unit's rows are then computed from the same place in memory's grid.
        at = slice(int(stops_U[unit] - sizes_U[unit]), int(stops_U[unit]))
        own_BD, own_BK = inputs_BD[at].clone(), push_BK[at].clone()
        total = ((own_BD @ own_BD.T + bias) * (own_BK @ own_BK.T)).sum()
        if along_BK is not None:
            turned_BK = own_BK * along_BK[at]
            total = total - (turned_BK @ turned_BK.T).sum()
        squares_U[unit] = float(total)
    with np.errstate(over="ignore", invalid="ignore"):
        squares_U = np.maximum(squares_U, 0.0) + CANCELLATION * lengths_U**2
    return np.where(np.isnan(squares_U), np.inf, squares_U), lengths_U
