"""Sums of clipped per-unit gradients, by a loop over units or in closed form for heads.

Both engines give the same float64 sum for the same draws, and so do those of
:mod:`fgvc_core.privacy.batched` and, with Opacus, :mod:`fgvc_core.privacy.hooks`. A unit's gradient
is the sum over its pictures (averaged over views). It is replaced by zero if it is not finite, and
then clipped. Its scale depends, to the bit, only on the unit's own pictures and not on which units
are drawn with it. No unit is too large for memory.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fgvc_core.privacy.rows import AT_ONCE, row_products, row_sums
from fgvc_core.privacy.sampling import clip_scales
from fgvc_core.privacy.standardised import fixed_weights

CANCELLATION = 2.0**-40
"""Relative error, in the squared lengths of a gradient's parts, by which rounding may reduce its
squared norm."""

UNBOUNDED = 1 << 30
"""Value of ``at_once`` without a limit."""

CANCELLING = 64.0
"""A unit is summed separately if its parts are together more than this many times as long as their
sum: rounding its parts in one sum with other units could exceed
:data:`~fgvc_core.privacy.noise.SUMMING`."""

LossOf = Callable[[torch.Tensor], torch.Tensor]
"""Positions (B,) to the losses (B,) of their pictures, each call with new random views."""


@dataclass(frozen=True)
class UnitBatch:
    """The pictures of the units drawn for one step.

    Attributes:
        positions_B: int64, positions of examples; all examples of each drawn unit.
        units_B: int64, 0 to U - 1, the drawn unit of each position.
        count: U; a unit without examples contributes nothing.
    """

    positions_B: NDArray[np.int64]
    units_B: NDArray[np.int64]
    count: int


@dataclass(frozen=True)
class ClippedSum:
    """The result of a step before noise.

    Attributes:
        total_D: float64 (D,), the sum of the units' clipped gradients, parameters concatenated.
        unclipped: Number of units with a gradient within the bound.
    """

    total_D: torch.Tensor
    unclipped: int


class GradientEngine(Protocol):
    """Computes clipped sums for one model."""

    def session(self) -> AbstractContextManager[None]:
        """Context for many calls; attaches to the model what the engine needs, and removes it."""
        ...

    def clipped_sum(self, batch: UnitBatch, bound: float) -> ClippedSum:
        """See :class:`ClippedSum`; an empty batch gives zeros without a forward pass."""
        ...


@runtime_checkable
class BySinglePictures(GradientEngine, Protocol):
    """An engine that also gives the gradients of single pictures."""

    def picture_gradients(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One (B, d) per parameter: gradients of the losses at B positions."""
        ...


class LoopEngine:
    """One protected unit at a time: exact, little memory, and the reference of all engines.

    Args:
        parameters: The trainable parameters, in order.
        losses: Per-picture losses of the current model.
        views: Random views of each picture, averaged.
        at_once: Most pictures (times views) of a unit in memory at once.
        model: The model of the losses; if given, work shared by all units is done once per step.
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
        """See :class:`GradientEngine`; nothing is attached."""
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
        # Keep the graph that all units share; a unit's own graph is freed with its loss.
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
    """A linear or cosine head in the form that the closed-form engine uses.

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
    """Per-unit norms of a head's gradient from inner products, without forming the gradients.

    A picture's gradient of row k is d_k times a vector (Goodfellow 2015,
    https://arxiv.org/abs/1510.01799): x itself in a linear head; in a cosine head, the component of
    x's direction that is orthogonal to the row's. Inner products of two pictures' gradients follow
    from those of their features. Cancellation in these products can make a norm too small; a
    hostile server can exploit this by sending rows of length 1e-12 along one picture's features.
    Norms are therefore increased by the largest possible rounding error.

    Args:
        head: Returns the current head.
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
        """See :class:`GradientEngine`; nothing is attached."""
        return nullcontext()

    def clipped_sum(self, batch: UnitBatch, bound: float) -> ClippedSum:
        """See :class:`GradientEngine`; the weight's values come first, then the bias's."""
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
        """Add whole units by inner products of their pictures; returns how many were clipped."""
        pushed = self._pushed(head, rows)
        units_B = np.cumsum(np.diff(units_B, prepend=units_B[0]) != 0)
        squares_U, lengths_U = _squares(pushed, head.bias_K is not None, units_B)
        scales_U = clip_scales(squares_U, bound)
        # Parts that cancel within a unit would be rounded in a sum with other units' parts.
        with np.errstate(over="ignore", invalid="ignore"):
            cancelling_U = (lengths_U > CANCELLING * np.sqrt(squares_U)) & (scales_U > 0)
        clipped = int((scales_U[~cancelling_U] < 1.0).sum())
        for unit in np.flatnonzero(cancelling_U).tolist():
            clipped += self._add_large(head, rows[units_B == unit], bound, total)
        scales_U[cancelling_U] = 0.0
        scales_B = torch.from_numpy(scales_U[units_B])
        # Select rather than multiply by zero: zero times infinity is NaN.
        kept_B = scales_B > 0
        kept = pushed.take(kept_B)
        kept.push_BK.mul_(scales_B[kept_B, None])
        head.add(kept, total)
        return clipped

    def _add_large(
        self, head: "_Read", rows: torch.Tensor, bound: float, total: list[torch.Tensor]
    ) -> int:
        """Add one unit by forming its gradient, piece by piece; returns 1 if clipped, else 0.

        The matrix of inner products would need memory quadratic in the number of pictures. And if
        the parts cancel, only the formed gradient gives an accurate norm.
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
        """The pictures' input vectors, and the factor of each class's row along them."""
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
    """Pictures' gradients in factors: row k is push_k times (input - along_k * direction_k)."""

    inputs_BD: torch.Tensor
    push_BK: torch.Tensor
    along_BK: torch.Tensor | None

    def take(self, kept_B: torch.Tensor) -> "_Pushed":
        along_BK = None if self.along_BK is None else self.along_BK[kept_B]
        return _Pushed(self.inputs_BD[kept_B], self.push_BK[kept_B], along_BK)


@dataclass(frozen=True)
class _Read:
    """The current head in float64 on the CPU: it is small, wherever the model is."""

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
        """A zero gradient: of the weight, and of the bias if there is one."""
        weight = torch.zeros_like(self.weight_KD)
        return [weight] if self.bias_K is None else [weight, torch.zeros_like(self.bias_K)]

    def add(self, pushed: _Pushed, total: list[torch.Tensor]) -> None:
        """Add the pictures' gradients to ``total``, in place."""
        total[0] += pushed.push_BK.T @ pushed.inputs_BD
        if pushed.along_BK is not None:
            # With non-finite weights no unit is kept, but 0 * NaN would still make the sum NaN.
            directions_KD = self.directions_KD.nan_to_num(0.0, 0.0, 0.0)
            total[0] -= (pushed.push_BK * pushed.along_BK).sum(dim=0)[:, None] * directions_KD
        if self.bias_K is not None:
            total[1] += pushed.push_BK.sum(dim=0)


def whole_units(units_B: NDArray[np.int64], at_once: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of ranges of whole units, each of at most ``at_once`` rows or of one unit.

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
    """D, the total number of values."""
    return sum(parameter.numel() for parameter in parameters)


def _pushes(logits_BK: torch.Tensor, labels_B: torch.Tensor, smoothing: float) -> torch.Tensor:
    """(B, K): gradient of the cross-entropy in the logits."""
    classes = logits_BK.shape[1]
    wanted_BK = F.one_hot(labels_B, classes).double() * (1 - smoothing) + smoothing / classes
    return logits_BK.softmax(dim=1) - wanted_BK


def _squares(
    pushed: _Pushed, bias: bool, units_B: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squared norms of the units' summed gradients, and lengths of their parts: float64 (U,).

    The second is the sum of the lengths of everything that is added up within the unit, whether or
    not it cancels.

    Args:
        pushed: The pictures' gradients.
        bias: Whether the head has a bias.
        units_B: int64, sorted, 0 to U - 1, each occurring.
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
        # Clone: the result to the bit can depend on memory alignment, which a slice inherits from
        # others.
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
